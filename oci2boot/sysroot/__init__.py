"""What is installed on a machine. Pure, but for what reads the machine."""
