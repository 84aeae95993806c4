"""What a run tells: its record in log.jsonl, and the views of it on the console, in W&B and as charts."""
