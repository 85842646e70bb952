"""The front door for Python: what ``import etw_lightning`` offers, each loaded when it is used."""
