"""Every sample sent is received or counted as missing, whatever is lost, repeated or restarted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.blocks import Block, BlockAssembler, join_mv
from firmware_bridge.errors import RecordingError
from firmware_bridge.messages import Info, Log, LogLevel, Samples, Status, StopReason
from firmware_bridge.protocol import Frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

RATE_HZ = 250.0
TOLD = (
    "first_sample",
    "samples",
    "ecg_mv",
    "lead_off",
    "saturated",
    "flagged",
    "missing_samples",
    "restarted",
    "resumed",
)


def stream(samples: int, boot_id: int = 1, seed: int = 0) -> list[Frame]:
    """All frames of a two-lead device from boot to the end of its recording."""
    ecg_uv = np.random.default_rng(seed).integers(-3000, 3000, size=(2, samples))
    recording = Recording("two leads", ("I", "II"), RATE_HZ, (ecg_uv / 1000).astype(np.float32))
    device = VirtualDevice(recording, boot_id=boot_id)
    frames = device.announce() + device.start()
    while device.streaming:
        frames += device.sample()
    return frames


def push_all(frames: list[Frame]) -> tuple[list[Block], BlockAssembler]:
    """One by one, which must be the same as all at once."""
    assembler = BlockAssembler()
    blocks = [block for frame in frames if (block := assembler.push(frame)) is not None]
    together = BlockAssembler()
    at_once = together.push_all(frames)
    assert together.stats == assembler.stats
    assert len(at_once) == len(blocks)
    for one, other in zip(at_once, blocks, strict=True):
        for name in TOLD:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    return blocks, assembler


def test_a_clean_stream_comes_out_as_it_went_in() -> None:
    blocks, assembler = push_all(stream(503))
    ecg_mv = np.concatenate([block.ecg_mv for block in blocks], axis=1)
    expected_uv = np.random.default_rng(0).integers(-3000, 3000, size=(2, 503))
    np.testing.assert_array_equal(ecg_mv, (expected_uv / 1000).astype(np.float32))
    assert ecg_mv.dtype == np.float32
    assert [block.first_sample for block in blocks] == list(range(0, 503, 5))
    assert not any(block.missing_samples or block.anew for block in blocks)
    assert not any(block.lead_off.any() or block.saturated.any() for block in blocks)
    assert assembler.stats.samples_missing == 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 300))
def test_received_and_missing_make_up_what_was_sent(copies: list[int], samples: int) -> None:
    """Every SAMPLES frame is dropped, passed or repeated."""
    frames = stream(samples)
    sent = [frame for frame in frames if isinstance(frame.message, Samples)]
    copies_of = {id(frame): copies[n % len(copies)] for n, frame in enumerate(sent)}
    blocks, assembler = push_all([frame for frame in frames for _ in range(copies_of.get(id(frame), 1))])
    stats = assembler.stats
    assert stats.samples_received + stats.samples_missing == samples
    assert stats.samples_received == sum(block.ecg_mv.shape[1] for block in blocks)
    assert stats.duplicates == sum(count == 2 for count in copies_of.values())
    assert stats.frames_missing == sum(count == 0 for count in copies_of.values())
    assert stats.restarts == stats.late == 0
    position = 0
    for block in blocks:
        assert block.first_sample == position + block.missing_samples
        position = block.first_sample + block.ecg_mv.shape[1]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_frames_that_overtake_each_other_cost_the_slower_ones(swaps: list[bool]) -> None:
    frames = stream(5 * len(swaps) + 5)
    first = 3  # the first SAMPLES
    late = 0
    for n, swap in enumerate(swaps):
        if swap and n % 2 == 0:
            at = first + n
            frames[at], frames[at + 1] = frames[at + 1], frames[at]
            late += 1
    blocks, assembler = push_all(frames)
    stats = assembler.stats
    assert stats.late == late
    assert stats.samples_missing == 5 * late
    assert stats.samples_received + stats.samples_missing == 5 * len(swaps) + 5
    assert stats.restarts == stats.duplicates == 0
    assert [block.first_sample for block in blocks] == sorted({block.first_sample for block in blocks})


def test_a_stop_without_a_restart_is_told_though_the_clock_stood_still() -> None:
    frames = [frame for frame in stream(503) if not isinstance(frame.message, Status)]
    third = [n for n, frame in enumerate(frames) if isinstance(frame.message, Samples)][3]

    def status(streaming: bool, tick: int) -> Frame:
        return Frame(frames[third].sequence, tick, Status(1, streaming, StopReason.FAULT))

    def resumed(*between: Frame) -> list[bool]:
        return [block.resumed for block in push_all([*frames[:third], *between, *frames[third:]])[0]]

    assert not any(resumed(status(True, 15)))
    told = resumed(status(False, 15), status(False, 15), status(True, 15))
    assert told == [n == 3 for n in range(101)]
    assert not any(resumed(status(False, 10)))  # late: samples that came have been sent behind it
    # Before the first sample nothing was going on that could have stopped.
    blocks, _ = push_all([*frames[: third - 3], status(False, 0), *frames[third - 3 :]])
    assert not any(block.anew for block in blocks)


def test_a_restart_behind_a_stop_is_a_restart() -> None:
    frames = stream(20)  # which end with a STATUS that says so
    blocks, _ = push_all([*frames, *stream(20, boot_id=2)])
    assert [(block.restarted, block.resumed) for block in blocks] == [(n == 4, False) for n in range(8)]


def test_a_restart_behind_a_gap_is_no_late_frame() -> None:
    """A firmware that has but one boot id begins at 0 again, and there was a gap."""
    first, second = stream(300), stream(400)
    blocks, assembler = push_all([*first[:10], *first[20:30], *second[3:]])
    assert assembler.stats.restarts == 1
    assert assembler.stats.late == 0
    assert sum(block.ecg_mv.shape[1] for block in blocks[17:]) == 400


def test_lost_frames_of_any_type_are_counted() -> None:
    frames = stream(300)
    chatter = [Frame(0, 0, Log(LogLevel.INFO, "x")), Frame(0, 0, frames[0].message), Frame(0, 0, frames[2].message)]
    numbered = [frame._replace(sequence=n + 65530) for n, frame in enumerate([*frames[:20], *chatter, *frames[20:]])]
    for lost in range(1, len(numbered) - 1):
        _, assembler = push_all([frame for n, frame in enumerate(numbered) if n != lost])
        assert assembler.stats.frames_missing == 1, lost
    _, assembler = push_all(numbered)
    assert assembler.stats.frames_missing == 0


@pytest.mark.parametrize("silence", [32_767, 32_768, 40_000, 65_470])
def test_a_long_silence_is_counted_in_full_and_what_comes_behind_it_too(silence: int) -> None:
    frames = stream(300)
    later = [
        frame._replace(sequence=(frame.sequence + silence) % 65536, tick=frame.tick + 5 * silence)
        for frame in frames[30:]
        if isinstance(frame.message, Samples)
    ]
    _, assembler = push_all([*frames[:30], *later[:10], *later[11:]])
    assert assembler.stats.frames_missing == silence + 1
    assert assembler.stats.samples_missing == 5 * silence + 5


def test_a_status_that_overtakes_samples_costs_no_frame_twice() -> None:
    frames = stream(300)
    status = Frame(frames[10].sequence + 1, frames[10].tick + 5, frames[2].message)
    behind = [frame._replace(sequence=frame.sequence + 1) for frame in frames[11:]]
    _, assembler = push_all([*frames[:10], status, frames[10], *behind])
    assert assembler.stats.frames_missing == 1
    assert assembler.stats.samples_missing == 0


@given(st.integers(1, 60), st.integers(0, 40), st.booleans())
def test_a_restart_is_told_once_and_counted_anew(heard: int, lost: int, same_boot_id: bool) -> None:
    """The first boot ends after `heard` blocks; the second is heard from its INFO, less `lost` SAMPLES
    frames."""
    first, second = stream(300), stream(400, boot_id=1 if same_boot_id else 2, seed=1)
    if same_boot_id:
        lost = 0  # a loss that hides the step back in time would hide the restart
    blocks, assembler = push_all([*first[: 3 + heard], *second[:3], *second[3 + lost :]])
    assert assembler.stats.restarts == 1
    assert [n for n, block in enumerate(blocks) if block.restarted] == [heard]
    later = blocks[heard:]
    assert later[0].first_sample == later[0].missing_samples == 5 * lost
    assert sum(block.ecg_mv.shape[1] + block.missing_samples for block in later) == 400


def test_a_restart_does_not_carry_a_gap_over() -> None:
    blocks, _ = push_all([*stream(300)[:20], *stream(200, boot_id=2)[:3], *stream(200, boot_id=2)[5:]])
    first_of_second_boot = next(block for block in blocks if block.restarted)
    assert first_of_second_boot.missing_samples == 10
    assert sum(block.missing_samples for block in blocks) == 10


def test_samples_before_info_are_counted_and_not_guessed() -> None:
    frames = stream(300)
    info = next(frame for frame in frames if isinstance(frame.message, Info))
    samples = [frame for frame in frames if isinstance(frame.message, Samples)]
    late_info = Frame(info.sequence, samples[10].tick, info.message)
    blocks, assembler = push_all([*samples[:10], late_info, *samples[10:]])
    assert assembler.stats.samples_before_info == 50
    assert assembler.stats.samples_received == 250
    assert assembler.stats.samples_missing == 0
    assert blocks[0].first_sample == 50
    assert not blocks[0].restarted


def test_samples_of_an_unknown_boot_wait_for_its_info() -> None:
    old, new = stream(300), stream(200, boot_id=2)
    blocks, assembler = push_all([*old[:20], *(frame for frame in new if isinstance(frame.message, Samples))])
    assert assembler.stats.samples_before_info == 200
    assert not any(block.restarted for block in blocks)


def test_a_lost_end_is_counted_and_shows_on_the_next_block() -> None:
    frames = stream(300)
    info, status = frames[0], frames[-1]
    assert isinstance(status.message, Status)
    later = Samples.from_counts(np.zeros((2, 5), np.int32), bytes_per_sample=3, boot_id=1)
    blocks, assembler = push_all([info, *frames[3:-3], status, Frame(200, 300, later)])
    assert assembler.stats.samples_missing == 10
    assert blocks[-1].missing_samples == 10


def test_a_repeated_frame_much_later_is_still_a_repetition() -> None:
    frames = stream(300)
    chatter = [Frame(frames[20].sequence + n, 90, Log(LogLevel.INFO, "x")) for n in range(1, 40)]
    _, assembler = push_all([*frames[:21], *chatter, frames[20]])
    assert assembler.stats.duplicates == 1
    assert assembler.stats.restarts == 0


def test_sequence_numbers_wrap() -> None:
    frames = [frame._replace(sequence=(frame.sequence + 65500) % 65536) for frame in stream(500)]
    copies = [frame for frame in frames for _ in range(2)]
    _, assembler = push_all(copies)
    assert assembler.stats.samples_received == 500
    assert assembler.stats.duplicates == 100


def test_a_frame_with_other_leads_than_announced_is_rejected() -> None:
    odd = Samples.from_counts(np.zeros((3, 5), np.int32), bytes_per_sample=3, boot_id=1)
    blocks, assembler = push_all([stream(300)[0], Frame(9, 0, odd)])
    assert blocks == []
    assert assembler.stats.rejected == 1


def test_lead_off_and_saturation_reach_the_block() -> None:
    message = Samples.from_counts(
        np.zeros((2, 5), np.int32), bytes_per_sample=3, boot_id=1, lead_off=0b10, saturated=0b01
    )
    blocks, _ = push_all([stream(300)[0], Frame(9, 0, message)])
    assert blocks[0].lead_off.tolist() == [False, True]
    assert blocks[0].saturated.tolist() == [True, False]


@pytest.mark.parametrize(("bytes_per_sample", "limit_mv"), [(2, 32.767), (3, 419.43035)])
def test_what_is_beyond_the_converter_is_clipped_and_marked(bytes_per_sample: int, limit_mv: float) -> None:
    ecg_mv = np.zeros((2, 10), np.float32)
    ecg_mv[1, 7] = 1000.0
    device = VirtualDevice(
        Recording("loud", ("I", "II"), RATE_HZ, ecg_mv), bytes_per_sample=bytes_per_sample, boot_id=1
    )
    frames = device.announce() + device.start()
    while device.streaming:
        frames += device.sample()
    blocks, _ = push_all(frames)
    assert [block.saturated.tolist() for block in blocks] == [[False, False], [False, True]]
    assert blocks[1].ecg_mv[1, 2] == pytest.approx(limit_mv)
    last = frames[-1].message
    assert isinstance(last, Status)
    assert last.reason is StopReason.END_OF_RECORDING


def test_more_leads_than_the_protocol_has_are_refused() -> None:
    names = tuple(f"X{n}" for n in range(17))
    with pytest.raises(RecordingError, match="17 leads"):
        VirtualDevice(Recording("many", names, RATE_HZ, np.zeros((17, 5), np.float32)))


def counted(samples: int, seed: int, width: int = 3, gain: float = 5e-5, leads: int = 2) -> Block:
    """A block as it comes off the wire, of counts up to the converter's limits."""
    limit = 1 << (8 * width - 1)
    counts = np.random.default_rng(seed).integers(-limit, limit, (leads, samples), dtype=np.int32)
    return Block.of_counts(0, Samples.from_counts(counts, bytes_per_sample=width, boot_id=1), gain, 0, False)


def given_mv(samples: int, leads: int = 2) -> Block:
    """A block that was never counts, as a file's."""
    flags = np.zeros(leads, np.bool_)
    return Block(
        0, np.random.default_rng(samples).normal(size=(leads, samples)).astype(np.float32), flags, flags, 0, False
    )


@given(
    st.lists(
        st.builds(
            counted, st.integers(1, 40), st.integers(0, 99), st.sampled_from((2, 3)), st.sampled_from((5e-5, 1e-3))
        )
        | st.builds(given_mv, st.integers(1, 40)),
        min_size=1,
        max_size=6,
    )
)
def test_blocks_are_joined_to_what_each_of_them_says(blocks: list[Block]) -> None:
    joined = join_mv(blocks)
    assert joined.shape == (2, sum(block.samples for block in blocks))
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.concatenate([block.ecg_mv for block in blocks], axis=1))


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("leads", [1, 2, 16])
def test_counts_of_any_width_and_number_of_leads_are_joined(width: int, leads: int) -> None:
    blocks = [counted(samples, seed, width, 1.0, leads) for seed, samples in enumerate((1, 2, 7))]
    joined = join_mv(blocks)
    assert joined.shape == (leads, 10)
    np.testing.assert_array_equal(joined, np.concatenate([block.ecg_mv for block in blocks], axis=1))


def test_a_flag_of_either_kind_shows_on_the_block() -> None:
    flag, none = np.array([False, True]), np.zeros(2, np.bool_)
    ecg_mv = np.zeros((2, 5), np.float32)
    assert [Block(0, ecg_mv, *flags, 0, False).flagged for flags in ((none, none), (flag, none), (none, flag))] == [
        False,
        True,
        True,
    ]
    data = bytes(2 * 3 * 5)
    assert not Block.of_counts(0, Samples(1, 4, 8, 2, 3, data), 1.0, 0, False).flagged  # of leads that are not there
    for lead_off, saturated in ((0, 0), (2, 0), (0, 1)):
        block = Block.of_counts(0, Samples(1, lead_off, saturated, 2, 3, data), 1.0, 0, False)
        assert block.flagged == bool(lead_off or saturated)
        assert block.lead_off.tolist() == [False, bool(lead_off)]
        assert block.saturated.tolist() == [bool(saturated), False]
