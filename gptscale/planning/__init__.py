"""What a run will take, before it takes it: memory, time, disk. Imports no torch."""
