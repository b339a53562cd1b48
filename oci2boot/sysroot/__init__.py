"""What is installed on a machine. Pure, except what reads the machine."""
