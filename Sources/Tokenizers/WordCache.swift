/// The tokens of words seen before: text repeats itself, and a look-up is far cheaper than merging.

struct WordCache: Sendable {
    /// Longer words are rare and seldom repeated.
    private static let longestWord = 48
    /// About 2 MiB; a full cache is emptied.
    private static let wordLimit = 32_768

    private struct Contents: Sendable {
        var words = ByteTable()
        /// Word k's tokens are tokens[starts[k]..<starts[k + 1]].
        var tokens: [Int32] = []
        var starts: [Int] = [0]
    }

    private var contents: Contents? = Contents()

    /// Hands the cache out, so that its memory has one owner; nil while somebody has it.
    mutating func take() -> WordCache? {
        guard contents != nil else { return nil }
        let taken = self
        contents = nil
        return taken
    }

    mutating func putBack(_ cache: WordCache) { self = cache }

    /// Appends the word's tokens, or returns false if it is not known.
    func append(_ word: UnsafeBufferPointer<UInt8>, to out: inout [Int32]) -> Bool {
        guard word.count <= Self.longestWord, let contents, let index = contents.words.value(of: word) else { return false }
        out.append(contentsOf: contents.tokens[contents.starts[Int(index)]..<contents.starts[Int(index) + 1]])
        return true
    }

    mutating func remember(_ word: UnsafeBufferPointer<UInt8>, _ tokens: ArraySlice<Int32>) {
        guard word.count <= Self.longestWord else { return }
        if contents!.words.count >= Self.wordLimit { contents = Contents() }
        contents!.words.insert(word, Int32(contents!.words.count))
        contents!.tokens.append(contentsOf: tokens)
        contents!.starts.append(contents!.tokens.count)
    }
}
