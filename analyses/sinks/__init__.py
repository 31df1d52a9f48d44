"""Where attention rests."""
