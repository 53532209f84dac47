"""What whoever looks at a study is shown, by the dashboard and by the report alike.

In comes what the store holds of a study; out come its data as tables, Plotly figures in one look, and sentences.
Nothing here knows in what they are shown.
"""
