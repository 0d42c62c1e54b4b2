"""Foreign jsonl, csv, parquet and hub files."""
