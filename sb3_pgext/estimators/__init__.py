"""The mathematics: pure, vectorised functions on flat tensors. No state, no SB3, no gymnasium."""
