"""Where a run lives: devices, ranks, engines, signals. The only home of accelerate and deepspeed."""
