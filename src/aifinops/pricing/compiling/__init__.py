"""From other people's price lists and from hand-written ones to the files in `pricing/data`. Never imported to price a call."""
