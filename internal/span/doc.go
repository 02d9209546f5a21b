// Package span reads a compressed blob at random: it knows which of the blob's
// bytes give which bytes of the data.
//
// Terms: the *blob* is a layer as the registry has it. The *data* is what it
// decodes to, or a rearrangement of that. A *span* is a run of data bytes and
// the run of blob bytes they are decoded from: the unit of fetching, verifying,
// decoding and caching. A *checkpoint* is where a decoder can start in the
// middle of the blob, with the state it needs there: for gzip a bit position
// and the *window*, up to 32 KiB of data before it; for zstd a frame's start or
// a block's, with the bytes before it that are copied later on. A *step* is a
// span of gzip data without a checkpoint: its window is the end of the data
// before it, which must be there first. That takes no space for a window, so
// steps are what makes spans smaller than checkpoints are far apart; a *run* is
// a checkpoint's span and the steps behind it. A *Table* holds a blob's spans, a
// Builder makes one from what somebody else knows (a foreign table of
// contents), and a Reader makes one while it decodes a stream from its start.
//
// Invariants of every Table, built or parsed: spans do not overlap in the data
// and come in its order; between two there may be a gap, whose bytes are zeros.
// Neither their beginnings nor their ends in the blob ever go back, and all lie
// inside of it. Neighbours may share blob bytes: one byte where gzip blocks
// meet inside it, all of them where several spans are parts of one frame.
//
// Nothing here trusts a table: Decode never reads or writes outside of what it
// is given, and returns an error where blob and table disagree. Where a span
// has a digest, of its blob bytes or its data, it is compared before Decode
// succeeds.
//
// A table's windows are sparse: bytes of them that the span does not refer to
// are zero, and what is left is compressed. About a tenth of a window is used.
package span
