// Package inflate decompresses gzip streams, fast.
//
// It exists because inflating is what a first contact with an image costs:
// with hashes done by the processor, everything else in the pass is small
// beside it. The decoder keeps 64 bits of input in a register, decodes through
// one table look-up per symbol, and writes into one flat buffer that is its
// own window, so a match is a copy inside it.
//
// Terms: a *member* is one gzip stream (RFC 1952); a file may hold several, one
// behind the other, and their contents are joined. A *block* is one deflate
// block (RFC 1951, section 3.2.3). The *window* is the last 32 KiB of output,
// which matches may refer to. A *checkpoint* is a border between two blocks,
// with the window there: all that it takes to begin decoding in the middle of a
// stream. Package span makes use of them.
//
// Every member's CRC-32 and length are checked before its last bytes are
// returned together with the end of the stream; the input is hostile, every
// table and every distance is checked, and no input makes it allocate.
//
// What follows the last member and does not begin like another is ignored, as
// gzip(1) does: padding as a rule, and whoever cares what it is hashes the input.
package inflate
