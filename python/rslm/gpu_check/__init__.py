"""Everything about the kernels that only a GPU can show, measured in one go.

`correctness` holds results against float64 and repeats them; `paged` does the first for attention
over block tables, and times it; `speed` times attention beside its peers (`contenders`); `sweep`
times launch configurations; `steps` times training. `cases` has the problems, `budget` keeps the
time, `report` writes what is over, `pictures` draws.
"""
