/// The patterns that cut text into words before byte-pair encoding, each a scanner of its own.
///
/// A `tokenizer.json` holds them as regular expressions. We know each by its exact text and scan by hand, which is
/// faster than any engine and needs none; another pattern is refused. Every pattern covers the whole text.

enum WordPattern: Sendable, Equatable {
    /// GPT-2's (Radford et al. 2019, `encoder.py`), also what "ByteLevel" with `use_regex` means.
    case gpt2
    /// Llama 3's (digits in groups of up to three) and Qwen 2's (digits one by one).
    case llama3(digits: Int)

    static let gpt2Text = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    static let llama3Text =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let qwen2Text =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

    /// Nil for a pattern that we do not know.
    init?(text: String) {
        switch text {
        case Self.gpt2Text: self = .gpt2
        case Self.llama3Text: self = .llama3(digits: 3)
        case Self.qwen2Text: self = .llama3(digits: 1)
        default: return nil
        }
    }

    /// Appends where each word of bytes[range] ends.
    func cut(_ bytes: [UInt8], _ range: Range<Int>, ends: inout [Int], _ scratch: inout WordScratch) {
        UnicodeClass.classify(bytes[range], classes: &scratch.classes, starts: &scratch.starts)
        var position = 0
        while position < scratch.classes.count {
            position = end(bytes, scratch, position)
            ends.append(scratch.starts[position])
        }
    }

    /// Where the word that starts at character `start` ends: the first alternative of the pattern that matches.
    private func end(_ bytes: [UInt8], _ scratch: WordScratch, _ start: Int) -> Int {
        let classes = scratch.classes
        let count = classes.count
        func run(from start: Int, while test: (UnicodeClass) -> Bool) -> Int {
            var end = start
            while end < count, test(classes[end]) { end += 1 }
            return end
        }
        if bytes[scratch.starts[start]] == UInt8(ascii: "'"), let end = contraction(bytes, scratch, start) { return end }
        let first = classes[start]
        let second = start + 1 < count ? classes[start + 1] : nil
        switch self {
        case .gpt2:
            // " ?\p{L}+", " ?\p{N}+", " ?[^\s\p{L}\p{N}]+"
            let lead = first == .blank && second != nil && !second!.isSpace
            let kind = lead ? second! : first
            if !kind.isSpace { return run(from: start + (lead ? 1 : 0)) { $0 == kind } }
        case .llama3(let digits):
            // "[^\r\n\p{L}\p{N}]?\p{L}+"
            if first == .letter { return run(from: start) { $0 == .letter } }
            if first != .lineBreak, first != .number, second == .letter { return run(from: start + 1) { $0 == .letter } }
            if first == .number { return min(start + digits, run(from: start) { $0 == .number }) }
            // " ?[^\s\p{L}\p{N}]+[\r\n]*"
            if first == .other || first == .blank && second == .other {
                return run(from: run(from: start + 1) { $0 == .other }) { $0 == .lineBreak }
            }
            // "\s*[\r\n]+": to the last line break of the white space
            let end = run(from: start) { $0.isSpace }
            if let last = classes[start..<end].lastIndex(of: .lineBreak) { return last + 1 }
        }
        // "\s+(?!\S)" leaves the last space to the word after it, "\s+" takes a single one.
        let end = run(from: start) { $0.isSpace }
        return end == count || end == start + 1 ? end : end - 1
    }

    /// "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"; in Llama 3's pattern whatever the case, where U+017F is an s.
    private func contraction(_ bytes: [UInt8], _ scratch: WordScratch, _ start: Int) -> Int? {
        func letter(_ index: Int) -> UInt8? {
            guard index < scratch.classes.count else { return nil }
            let byte = bytes[scratch.starts[index]]
            if self == .gpt2 { return byte }
            if byte == 0xC5, bytes[scratch.starts[index] + 1] == 0xBF { return UInt8(ascii: "s") }
            return UInt8(ascii: "A")...UInt8(ascii: "Z") ~= byte ? byte | 0x20 : byte
        }
        switch (letter(start + 1), letter(start + 2)) {
        case (UInt8(ascii: "s"), _), (UInt8(ascii: "t"), _), (UInt8(ascii: "m"), _), (UInt8(ascii: "d"), _): return start + 2
        case (UInt8(ascii: "r"), UInt8(ascii: "e")), (UInt8(ascii: "v"), UInt8(ascii: "e")),
            (UInt8(ascii: "l"), UInt8(ascii: "l")):
            return start + 3
        default: return nil
        }
    }
}

/// Working memory of `WordPattern`.
struct WordScratch {
    var classes: [UnicodeClass] = []
    var starts: [Int] = []
}
