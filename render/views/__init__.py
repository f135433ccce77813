"""Which pictures there are, and what each of them shows: captures → scenes."""
