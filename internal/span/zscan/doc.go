// Package zscan reads how a zstd stream (RFC 8878) is built, without decoding
// it: block by block it tells where a decoder could begin anew, what that
// decoder would have to know, and which earlier bytes the block's matches copy.
// It runs beside a decoder, which it does not need and knows nothing of.
//
// A block's sequences say all that matters: a sequence is a number of literals
// and a match, an offset back and a length. So literals are stepped over, only
// the FSE-coded sequences are read. What blocks of a frame hand on to the next
// is
//
//   - the window: the last bytes decoded, at most the frame's window size,
//   - three repeat offsets,
//   - four entropy tables (Huffman for literals; literal lengths, offsets and
//     match lengths), which a block may take over from an earlier one.
//
// The first two are told for each block; of the tables, whether a block takes
// them over (Block.Uses) or brings its own (Block.Sets).
//
// Nothing is believed: a stream that says something else than the format
// allows ends with ErrCorrupt. Content checksums are not compared, the decoder
// does that.
package zscan
