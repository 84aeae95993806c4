"""What a run is: the schema, the YAML reader and the GPT-2 presets."""
