"""Frames of a video, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cyclemlp_mm.errors import UserError

#: A file that gives less than this part of the frames that it announces is reported as truncated;
#: the announced number of some containers is an estimate.
_MOST_LOST = 0.98


class Video:
    """A video file, read frame by frame; memory does not grow with its length.

    Args:
        path (str | Path): The file.

    Attributes:
        fps (float): Frames per second; 25 where the file does not say.
        num_frames (int): As the file says, which may be wrong; 0 where it does not.

    Raises:
        UserError: It cannot be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.num_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames: BGR uint8, (H, W, 3).

        Raises:
            UserError: After the last frame, where there are none, or fewer than the file announces.
        """
        capture = self._open()
        try:
            frames = 0
            while True:
                there, frame = capture.read()
                if not there:
                    break
                frames += 1
                yield frame
            if not frames:
                raise UserError(f'{self.path}: no frame of this video can be decoded')
            if frames < _MOST_LOST * self.num_frames:
                raise UserError(
                    f'{self.path} ends after {frames} of {self.num_frames} frames: it is truncated '
                    'or damaged. What was decoded is predicted'
                )
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise UserError(f'{self.path} cannot be decoded as a video')
        return capture
