"""The GPT-2 family. Knows nothing of data, ranks or files."""
