/// Byte-pair encoding of one word (Sennrich, Haddow and Birch 2016, section 3.2), with the details of Hugging Face's:
/// merges by rank from a heap, bytes for characters that the vocabulary lacks, fused unknown tokens.

import Primitives

struct BytePairModel: Sendable {
    let vocabulary: Vocabulary
    private let merges: PairTable
    /// A word that is itself a token is that token, whatever the merges say.
    let ignoresMerges: Bool
    private let unknown: Int32?
    private let fusesUnknown: Bool
    /// The tokens "<0x00>"..."<0xFF>", -1 where there is none; nil without byte fallback.
    private let byteTokens: [Int32]?

    /// - Parameter part: "model", of the type "BPE".
    init(_ part: FilePart) throws(Failure) {
        if let dropout = part.part("dropout"), dropout.value.double != 0 { throw part.unsupported("\"dropout\"") }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if let affix = part.part(key), try !affix.text().isEmpty { throw part.unsupported("\"\(key)\"") }
        }
        let vocabulary = try Vocabulary(part.required("vocab"))
        self.vocabulary = vocabulary
        merges = try Self.merges(part, vocabulary)
        ignoresMerges = try part.bool("ignore_merges", default: false)
        fusesUnknown = try part.bool("fuse_unk", default: false)
        if let token = try part.part("unk_token")?.text() {
            guard let id = vocabulary.id(token) else {
                throw part.failure("\"model.unk_token\" is \"\(token)\", which \"model.vocab\" lacks")
            }
            unknown = id
        } else {
            unknown = nil
        }
        let digits = Array("0123456789ABCDEF")
        byteTokens =
            try part.bool("byte_fallback", default: false)
            ? (0..<256).map { vocabulary.id("<0x\(digits[$0 >> 4])\(digits[$0 & 15])>") ?? -1 } : nil
    }

    /// Reads "model.merges": pairs of tokens, or "left right" in one string.
    private static func merges(_ part: FilePart, _ vocabulary: Vocabulary) throws(Failure) -> PairTable {
        guard let elements = try part.required("merges").value.elements else {
            throw try part.required("merges").wrong("an array")
        }
        var table = PairTable(capacity: elements.count)
        var joined: [UInt8] = []
        for (rank, element) in elements.enumerated() {
            var left: ArraySlice<UInt8> = []
            var right: ArraySlice<UInt8> = []
            if let line = element.text {
                // A comment of the old format; it keeps its rank, as only the order counts.
                if line.hasPrefix("#version") { continue }
                let pieces = Array(line.utf8).split(separator: 0x20, omittingEmptySubsequences: false)
                if pieces.count == 2 { (left, right) = (pieces[0], pieces[1]) }
            } else if let pair = element.elements, pair.count == 2, let first = pair[0].text, let second = pair[1].text {
                (left, right) = (Array(first.utf8)[...], Array(second.utf8)[...])
            }
            guard !left.isEmpty, !right.isEmpty else {
                throw part.failure("\"model.merges[\(rank)]\" must be two tokens, as [\"a\", \"b\"] or \"a b\"")
            }
            joined.removeAll(keepingCapacity: true)
            joined.append(contentsOf: left)
            joined.append(contentsOf: right)
            guard let leftID = vocabulary.id(left), let rightID = vocabulary.id(right),
                let joinedID = vocabulary.id(joined[...])
            else {
                throw part.failure(
                    "\"model.merges[\(rank)]\" joins \"\(String(decoding: left, as: UTF8.self))\" and "
                        + "\"\(String(decoding: right, as: UTF8.self))\", of which \"model.vocab\" lacks one or the result")
            }
            table.insert(leftID, rightID, .init(rank: UInt32(rank), token: joinedID))
        }
        return table
    }

    /// Appends the tokens of one word (UTF-8, not empty).
    func encode(_ word: UnsafeBufferPointer<UInt8>, into tokens: inout [Int32], _ scratch: inout MergeScratch) {
        if ignoresMerges, let id = vocabulary.id(word) {
            tokens.append(id)
            return
        }
        scratch.tokens.removeAll(keepingCapacity: true)
        characters(of: word, into: &scratch.tokens)
        merge(&scratch)
        for token in scratch.tokens where token >= 0 { tokens.append(token) }
    }

    /// One token for each character, before any merge.
    private func characters(of word: UnsafeBufferPointer<UInt8>, into tokens: inout [Int32]) {
        // An unknown character waits here, so that the next one can be fused with it.
        var pending = false
        var start = 0
        while start < word.count {
            let end = min(word.count, start + UnicodeClass.byteCount(leading: word[start]))
            let character = UnsafeBufferPointer(rebasing: word[start..<end])
            start = end
            if let id = vocabulary.id(character) {
                if pending, let unknown { tokens.append(unknown) }
                pending = false
                tokens.append(id)
            } else if let byteTokens, character.allSatisfy({ byteTokens[Int($0)] >= 0 }) {
                for byte in character { tokens.append(byteTokens[Int(byte)]) }
            } else if let unknown {
                if pending, !fusesUnknown { tokens.append(unknown) }
                pending = true
            }
            // With neither, the character is lost, as it is in Hugging Face's.
        }
        if pending, let unknown { tokens.append(unknown) }
    }

    /// Merges the lowest rank first, of equal ranks the leftmost. Tokens that were merged into their left neighbour become -1.
    private func merge(_ scratch: inout MergeScratch) {
        let count = scratch.tokens.count
        guard count > 1 else { return }
        scratch.link(count)
        for index in 0..<count - 1 {
            if let merge = merges.merge(scratch.tokens[index], scratch.tokens[index + 1]) { scratch.push(merge, index) }
        }
        while let (position, token) = scratch.pop() {
            let next = Int(scratch.next[position])
            guard scratch.tokens[position] >= 0, next < count else { continue }
            // The pair may have changed since this entry was pushed.
            guard merges.merge(scratch.tokens[position], scratch.tokens[next])?.token == token else { continue }
            scratch.tokens[position] = token
            scratch.tokens[next] = -1
            let following = Int(scratch.next[next])
            scratch.next[position] = Int32(following)
            if following < count {
                scratch.previous[following] = Int32(position)
                if let merge = merges.merge(token, scratch.tokens[following]) { scratch.push(merge, position) }
            }
            let previous = Int(scratch.previous[position])
            if previous >= 0, let merge = merges.merge(scratch.tokens[previous], token) { scratch.push(merge, previous) }
        }
    }
}

/// Working memory of one encoding: a doubly linked list of tokens and a binary heap of possible merges.
struct MergeScratch {
    var tokens: [Int32] = []
    var next: [Int32] = []
    var previous: [Int32] = []
    /// rank << 32 | position, smallest first.
    private var keys: [UInt64] = []
    private var results: [Int32] = []
    /// A word in the byte alphabet, or the rest of one with its prefix.
    var word: [UInt8] = []

    mutating func link(_ count: Int) {
        next.removeAll(keepingCapacity: true)
        previous.removeAll(keepingCapacity: true)
        for index in 0..<Int32(count) {
            next.append(index + 1)
            previous.append(index - 1)
        }
        keys.removeAll(keepingCapacity: true)
        results.removeAll(keepingCapacity: true)
    }

    mutating func push(_ merge: PairTable.Merge, _ position: Int) {
        let key = UInt64(merge.rank) << 32 | UInt64(position)
        keys.append(key)
        results.append(merge.token)
        var child = keys.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard keys[parent] > key else { break }
            keys[child] = keys[parent]
            results[child] = results[parent]
            child = parent
        }
        keys[child] = key
        results[child] = merge.token
    }

    mutating func pop() -> (position: Int, token: Int32)? {
        guard let first = keys.first else { return nil }
        let token = results[0]
        let key = keys.removeLast()
        let result = results.removeLast()
        if !keys.isEmpty {
            var parent = 0
            while true {
                var child = 2 * parent + 1
                guard child < keys.count else { break }
                if child + 1 < keys.count, keys[child + 1] < keys[child] { child += 1 }
                guard keys[child] < key else { break }
                keys[parent] = keys[child]
                results[parent] = results[child]
                parent = child
            }
            keys[parent] = key
            results[parent] = result
        }
        return (Int(first & 0xFFFF_FFFF), token)
    }
}
