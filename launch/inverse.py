# SPDX-License-Identifier: Apache-2.0
"""The former name of launch.complete, with the same flags."""

from absl import flags

from launch import command, complete

flags.adopt_module_key_flags(complete)

if __name__ == "__main__":
    command.run(complete.prepare)
