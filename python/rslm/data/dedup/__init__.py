"""Copies and near-copies taken out of a corpus: exact lines, exact documents, near-duplicates.

What is kept depends on the documents and their ids alone: not on the order they come in, on how
they are spread over files, workers or machines, nor on what was seen first.

- `lines`: a line counts over the whole corpus; `exact`: documents of the same text.
- `normalize` -> `shingles` -> `minhash` -> `lsh` -> `union_find` -> `clusters`: the stations of a
  near-duplicate, which `near_duplicates` strings together.
- `stages`: all of it over the shards of a corpus, in bounded memory, each shard by itself.
- `files`: whole files in, whole files out; `course`: the same under the names of CS336.

The plain forms, written to be read, are the specification: `implementation="reference"`. What
runs by default is their twin in Rust, `rust/web/dedup`, which gives the same.
"""
