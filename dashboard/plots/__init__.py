"""Plotly figures from plain data: nothing here knows Streamlit."""
