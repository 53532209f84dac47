"""What the browser shows, one view per module: the only part, beside `app.py`, that knows Streamlit."""
