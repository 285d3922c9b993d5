"""Budgets: which recipe, how many bits, how sparse, so that it fits and loses least.

`ladder` tries recipes from cheap to dear, `bit_widths` chooses bits layer by layer out of what `narrowing` measures,
`sparsity_scan` prices pruning, `answers` tells what would make a file smaller or faster; `knapsack` solves them
exactly, `search_state` lets a stopped search go on. A model, samples and a budget come in, the chosen model and what
was measured go out. A new rung is one more `yield` in the `_ladder` of `ladder` or `byte_ladder`, a new answer one more
candidate in `answers`.
"""
