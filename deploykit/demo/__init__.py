"""``deploykit demo``: the main job on real data, from training to verified predictions, in a minute.

``digits`` is the data, ``network`` and ``training`` what a user would bring, ``checkpoint`` the file they would have,
``folder`` the directory that the demo writes, ``work`` the job itself, through the public interface, ``measures`` and
``findings`` what came out, ``text`` and ``picture`` how it is shown, and ``story`` the order of it all.
"""

__all__: list[str] = []
