"""A ROS 2 node: images of a camera in, masks out, whose pixels are class indices.

    source /opt/ros/jazzy/setup.bash
    python examples/ros2_node.py --ros-args -p bundle:=out/dpt-b -r image:=/camera/image_raw

Needs a ROS 2 whose Python is 3.11 or newer (Jazzy has 3.12). The two functions that map messages need no ROS.
"""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime import DenseportError, Segmenter

# Encodings of sensor_msgs/Image with 8 bits a channel: which channels are blue, green and red.
CHANNELS = {
    "bgr8": (0, 1, 2), "8UC3": (0, 1, 2), "rgb8": (2, 1, 0), "bgra8": (0, 1, 2), "rgba8": (2, 1, 0), "mono8": (0, 0, 0)
}  # fmt: skip
BYTES = {"bgra8": 4, "rgba8": 4, "mono8": 1}  # of a pixel; else 3


def image_of(message: Any) -> NDArray[np.uint8]:
    """A sensor_msgs/Image as (H, W, 3) BGR uint8. Raises ValueError for another encoding, or too few bytes."""
    if message.encoding not in CHANNELS:
        raise ValueError(f"images in {message.encoding} are not taken; convert them to one of {', '.join(CHANNELS)}")
    size = BYTES.get(message.encoding, 3)
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)  # step: bytes of a row
    pixels = rows[:, : message.width * size].reshape(message.height, message.width, size)
    return np.ascontiguousarray(pixels[..., CHANNELS[message.encoding]])


def fill_mask(message: Any, mask: NDArray[Any], header: Any) -> Any:
    """An empty sensor_msgs/Image becomes a mask (H, W) with the image's header: its time and frame."""
    message.header = header
    message.height, message.width = mask.shape
    message.encoding = f"mono{8 * mask.itemsize}"  # mono16 beyond 256 classes
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = mask.shape[1] * mask.itemsize
    message.data = array.array("B", mask.tobytes())
    return message


def main() -> None:
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = Node("denseport")
    with Segmenter(node.declare_parameter("bundle", "").value) as segment:
        masks = node.create_publisher(Image, "mask", qos_profile_sensor_data)

        def answer(message: Any) -> None:
            try:
                mask = segment(image_of(message)).mask
            except (DenseportError, ValueError) as err:
                node.get_logger().error(str(err))
                return
            masks.publish(fill_mask(Image(), mask, message.header))

        node.create_subscription(Image, "image", answer, qos_profile_sensor_data)
        node.get_logger().info(segment.description)
        rclpy.spin(node)


if __name__ == "__main__":
    main()
