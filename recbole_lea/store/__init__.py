"""Arrays on disk that survive anything.

A cache folder ``lea_cache/<dataset>/`` can be read without this program. It holds JSON, NumPy's
``.npy`` and safetensors:

- ``sequences-<fingerprint>/``: ``users.json`` and ``items.json`` list the user and item tokens;
  ``sequences.npy`` [n_states] holds the users' items one user after the other, as positions in
  ``items.json``; user ``u`` (a position in ``users.json``) owns its rows ``offsets[u]`` to
  ``offsets[u + 1] - 1``, with ``offsets.npy`` [n_users + 1].
- ``states-<key>/`` and ``projection-<key>/`` (``state_dim``): ``states.npy`` [n_states, width].
  The state of user ``u`` after ``n >= 1`` items is row ``offsets[u] + n - 1``.
- ``rewards-<key>/``: ``rewards.npy`` and ``actions.npy`` [n_transitions, 1 + negative_pool]: the
  scores, and which items they are of, as positions in ``items.json``; the first is the item that
  followed. User ``u``'s action after ``n >= 1`` items is row ``offsets[u] - u + n - 1``: a user
  has one transition less than items.
- ``selection-<key>/`` and ``selection_rewards-<key>/`` (augmentation): one row per
  transition too, ``label_scores.npy`` or ``rewards.npy`` beside ``actions.npy``.
- ``keys-<key>/``: ``keys.npy`` [n_items, d], what states are compared with, by position in
  ``items.json``.
- ``manifest.json`` beside arrays, ``done.json`` beside other files: shapes, dtypes, checksums,
  what they were made from and with which versions, and ``sequences``: the folder above.
"""
