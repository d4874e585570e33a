"""How training changes the weights: schedules, optimisers, averaged weights."""
