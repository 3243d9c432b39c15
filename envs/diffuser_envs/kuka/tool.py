"""The arm's description: pybullet_data's iiwa with a straight tool added to it.

Nothing of `pybullet_data` is copied into this package: its file is read when a world is
built, and the tool is appended as one more link.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffuser_envs.kuka.arm import TOOL_LENGTH
from diffuser_envs.kuka.bullet import pybullet_data

ARM_FILE = "kuka_iiwa/model.urdf"
TOOL_RADIUS = 0.02
TOOL_LINK = 7  # index of the tool in Bullet's list of links
# pybullet_data ends its last link in the face that tools are fixed to.
_LAST_LINK = "lbr_iiwa_link_7"
_LAST_LINK_LENGTH = 0.045


@contextmanager
def arm_file() -> Iterator[str]:
    """Write the arm with its tool to a temporary file, for as long as it is read.

    The tool link's frame is its tip, z pointing out of the arm.

    Yields:
        Path of a URDF file.
    """
    source = Path(pybullet_data.getDataPath()) / ARM_FILE
    text = source.read_text(encoding="utf-8")
    # Bullet looks for meshes beside the file that names them.
    text = text.replace('filename="meshes/', f'filename="{source.parent}/meshes/')
    head, _, tail = text.rpartition("</robot>")
    with tempfile.TemporaryDirectory(prefix="diffuser_envs_") as folder:
        path = Path(folder) / "arm.urdf"
        path.write_text(f"{head}{_tool()}</robot>{tail}", encoding="utf-8")
        yield str(path)


def _tool() -> str:
    shape = (
        f'<origin rpy="0 0 0" xyz="0 0 {-TOOL_LENGTH / 2}"/>'
        f'<geometry><cylinder radius="{TOOL_RADIUS}" length="{TOOL_LENGTH}"/>'
        "</geometry>"
    )
    return f"""
  <link name="tool">
    <inertial>
      <origin rpy="0 0 0" xyz="0 0 {-TOOL_LENGTH / 2}"/>
      <mass value="0.2"/>
      <inertia ixx="0.0002" ixy="0" ixz="0" iyy="0.0002" iyz="0" izz="0.00004"/>
    </inertial>
    <visual>{shape}<material name="Grey"/></visual>
    <collision>{shape}</collision>
  </link>
  <joint name="tool_joint" type="fixed">
    <parent link="{_LAST_LINK}"/>
    <child link="tool"/>
    <origin rpy="0 0 0" xyz="0 0 {_LAST_LINK_LENGTH + TOOL_LENGTH}"/>
  </joint>
"""
