"""What a run needs, before it begins: memory, time, disk; and what a device can give."""
