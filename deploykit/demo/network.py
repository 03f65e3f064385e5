"""A small convolutional classifier with dropout, as anybody would write it; nothing in it knows of deploykit."""

import torch
from torch import nn

__all__ = ["DigitsNet"]


class DigitsNet(nn.Module):
    """Images (batch, 1, 8, 8) float32 to scores (batch, classes) float32."""

    def __init__(
        self, channels: int = 16, hidden: int = 128, classes: int = 10, p_features: float = 0.2, p_hidden: float = 0.3
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(p_features),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * channels * 4 * 4, hidden),
            nn.ReLU(),
            nn.Dropout(p_hidden),
            nn.Linear(hidden, classes),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(image))
        return scores
