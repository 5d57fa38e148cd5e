"""Where a recording is made: reverberation, frequency response, noise and level, in torch.

The same model of a room makes a demo speaker's recordings (one room a speaker) and augments
training (one random room an utterance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

SAMPLE_RATE = 16_000  # Hz


@dataclass(frozen=True)
class Room:
    """A room with its microphone.

    reverberation: seconds until the echo has fallen by 60 dB; 0 is none.
    echo_db: energy of the echo relative to the direct sound.
    low, high: band of the microphone in Hz (-3 dB points of second-order slopes).
    tilt_db: gain per octave around 1 kHz.
    snr_db: speech to noise.
    noise_slope: power of the noise falls as 1 / f ** slope (0 white, 1 pink, 2 brown).
    level_db: RMS of the speech relative to full scale.
    """

    reverberation: float = 0.0
    echo_db: float = -6.0
    low: float = 20.0
    high: float = 8000.0
    tilt_db: float = 0.0
    snr_db: float = 60.0
    noise_slope: float = 1.0
    level_db: float = -26.0


def random_room(generator: torch.Generator) -> Room:
    """Draw an ordinary room; a third of them is nearly a studio."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    studio = uniform(0, 1) < 1 / 3
    return Room(
        reverberation=0.0 if studio else uniform(0.05, 0.4),
        echo_db=uniform(-15, -3),
        low=math.exp(uniform(math.log(20), math.log(250))),
        high=math.exp(uniform(math.log(3500), math.log(16000))),
        tilt_db=uniform(-2, 2),
        snr_db=uniform(25, 45) if studio else uniform(8, 40),
        noise_slope=uniform(0, 2),
        level_db=uniform(-40, -15),
    )


def record(speech: torch.Tensor, rooms: list[Room], generator: torch.Generator) -> torch.Tensor:
    """Play each row of `speech` in its room.

    speech, shape = (n_batch, n_samples), is zero where nobody speaks; noise fills those places
    too. The result has the same shape.
    """
    n_batch, n_samples = speech.shape
    n_fft = 1 << (n_samples + SAMPLE_RATE // 2 - 1).bit_length()  # room for half a second of echo
    frequency = torch.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)  # (n_fft / 2 + 1,)

    echoes = torch.stack([_impulse_response(room, generator) for room in rooms])
    response = torch.stack([_frequency_response(room, frequency) for room in rooms])
    spectrum = torch.fft.rfft(speech, n_fft) * torch.fft.rfft(echoes, n_fft) * response
    heard = torch.fft.irfft(spectrum, n_fft)[:, :n_samples]

    slope = torch.tensor([room.noise_slope for room in rooms])
    shape = frequency.clamp_min(50.0)[None] ** (-slope[:, None] / 2)
    white = torch.randn(n_batch, n_samples, generator=generator)
    noise = torch.fft.irfft(torch.fft.rfft(white, n_fft) * shape, n_fft)[:, :n_samples]

    spoken = (speech != 0).sum(1, keepdim=True).clamp_min(1)
    heard_rms = (heard.square().sum(1, keepdim=True) / spoken).sqrt().clamp_min(1e-8)
    noise_rms = noise.square().mean(1, keepdim=True).sqrt().clamp_min(1e-8)
    level = 10 ** (torch.tensor([[room.level_db] for room in rooms]) / 20)
    snr = 10 ** (torch.tensor([[room.snr_db] for room in rooms]) / 20)
    return level * (heard / heard_rms + noise / noise_rms / snr)


def _impulse_response(room: Room, generator: torch.Generator) -> torch.Tensor:
    """The direct sound, then noise that dies away; shape = (half a second,)."""
    n_samples = SAMPLE_RATE // 2
    response = torch.zeros(n_samples)
    if room.reverberation > 0:
        time = torch.arange(n_samples) / SAMPLE_RATE
        decay = torch.exp(-math.log(1000) * time / room.reverberation)  # 60 dB in amplitude
        response = torch.randn(n_samples, generator=generator) * decay
        response[: SAMPLE_RATE // 500] = 0  # the first wall is some 35 cm away
        response *= 10 ** (room.echo_db / 20) / response.norm()
    response[0] = 1.0
    return response


def _frequency_response(room: Room, frequency: torch.Tensor) -> torch.Tensor:
    """Gain at each frequency in Hz, without phase."""
    high_pass = (1 + (room.low / frequency.clamp_min(1.0)) ** 4).rsqrt()
    low_pass = (1 + (frequency / room.high) ** 4).rsqrt()
    octaves = torch.log2(frequency.clamp(60.0) / 1000)
    return high_pass * low_pass * 10 ** (room.tilt_db * octaves / 20)
