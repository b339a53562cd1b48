"""Words to a request, a result to words: the one place that prints and exits."""
