"""The renderers of results: tables.py (Markdown), page.py (HTML), figures/ (plots)."""
