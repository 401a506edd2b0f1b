"""What keeps a run of many processes and many hours together, whatever is trained in it."""
