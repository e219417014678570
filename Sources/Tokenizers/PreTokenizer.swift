/// Cuts a normalized text into words: the steps of "pre_tokenizer".

import Primitives

/// A text and where it is cut: piece k is bytes[bounds[k]..<bounds[k + 1]], never empty.
struct Pieces {
    var bytes: [UInt8]
    var bounds: [Int]
    /// The first piece stands at the very start of the input.
    let startsInput: Bool

    init(_ bytes: [UInt8], startsInput: Bool) {
        self.bytes = bytes
        self.startsInput = startsInput
        bounds = bytes.isEmpty ? [0] : [0, bytes.count]
    }

    var count: Int { bounds.count - 1 }
    func range(_ piece: Int) -> Range<Int> { bounds[piece]..<bounds[piece + 1] }
}

enum PreTokenizer: Sendable {
    case words(WordPattern)
    /// Cuts around numbers: each digit, or each run of them.
    case digits(individual: Bool)
    /// Puts a space before each piece that has none.
    case prefixSpace
    /// Spaces become `replacement`; the pieces start at it if `splits`.
    case metaspace(replacement: [UInt8], prepend: Prepend, splits: Bool)
    /// BERT's: white space parts words and is left out, each punctuation character is a word.
    case bert

    enum Prepend: String, Sendable {
        case always, first, never
    }

    /// The steps in order, and whether the words are then spelt in the byte alphabet.
    static func read(_ part: FilePart?) throws(Failure) -> (steps: [PreTokenizer], spellsBytes: Bool) {
        guard let part else { return ([], false) }
        var steps: [PreTokenizer] = []
        var spellsBytes = false
        var hasMetaspace = false
        let parts = try part.type() == "Sequence" ? part.parts("pretokenizers") : [part]
        for step in parts {
            if spellsBytes { throw part.unsupported("a step after \"ByteLevel\"") }
            switch try step.type() {
            case "ByteLevel":
                if try step.bool("add_prefix_space", default: true) { steps.append(.prefixSpace) }
                if try step.bool("use_regex", default: true) { steps.append(.words(.gpt2)) }
                spellsBytes = true
            case "Split": steps.append(.words(try pattern(step)))
            case "Digits": steps.append(.digits(individual: try step.bool("individual_digits", default: false)))
            case "BertPreTokenizer": steps.append(.bert)
            case "Metaspace":
                // With different characters, a second cuts and lengthens what the first made, a third what the second made.
                if hasMetaspace { throw part.unsupported("a second \"Metaspace\"") }
                hasMetaspace = true
                steps.append(try metaspace(step))
            case let type: throw step.unsupported("the type \"\(type)\"")
            }
        }
        return (steps, spellsBytes)
    }

    private static func pattern(_ part: FilePart) throws(Failure) -> WordPattern {
        let behavior = try part.text("behavior")
        guard behavior == "Isolated" else { throw part.unsupported("the behavior \"\(behavior)\"") }
        if try part.bool("invert", default: false) { throw part.unsupported("\"invert\"") }
        let written = try part.required("pattern")
        guard let text = try written.part("Regex")?.text(), let pattern = WordPattern(text: text) else {
            throw part.unsupported("the pattern \(written.value.compact)")
        }
        return pattern
    }

    private static func metaspace(_ part: FilePart) throws(Failure) -> PreTokenizer {
        let replacement = try part.part("replacement")?.text() ?? "▁"
        guard replacement.unicodeScalars.count == 1 else { throw part.unsupported("a replacement of several characters") }
        var prepend = try part.bool("add_prefix_space", default: true) ? Prepend.always : .never
        if let scheme = try part.part("prepend_scheme")?.text() {
            guard let known = Prepend(rawValue: scheme) else { throw part.unsupported("the prepend_scheme \"\(scheme)\"") }
            prepend = known
        }
        return .metaspace(
            replacement: Array(replacement.utf8), prepend: prepend, splits: try part.bool("split", default: true))
    }

    func apply(_ pieces: inout Pieces, _ scratch: inout WordScratch) {
        switch self {
        case .words(let pattern):
            var bounds = [0]
            for piece in 0..<pieces.count { pattern.cut(pieces.bytes, pieces.range(piece), ends: &bounds, &scratch) }
            pieces.bounds = bounds
        case .digits(let individual):
            var bounds = [0]
            for piece in 0..<pieces.count {
                UnicodeClass.classify(pieces.bytes[pieces.range(piece)], classes: &scratch.classes, starts: &scratch.starts)
                for index in 1..<scratch.starts.count {
                    let isNumber = scratch.classes[index - 1] == .number
                    let continues = index < scratch.classes.count && (scratch.classes[index] == .number) == isNumber
                    if !continues || individual && isNumber { bounds.append(scratch.starts[index]) }
                }
            }
            pieces.bounds = bounds
        case .bert:
            var bytes: [UInt8] = []
            bytes.reserveCapacity(pieces.bytes.count)
            var bounds = [0]
            func endWord() {
                if bytes.count > bounds[bounds.count - 1] { bounds.append(bytes.count) }
            }
            for piece in 0..<pieces.count {
                for scalar in String(decoding: pieces.bytes[pieces.range(piece)], as: UTF8.self).unicodeScalars {
                    if scalar.properties.isWhitespace {
                        endWord()
                        continue
                    }
                    let isWord = scalar.isPunctuationOfBERT
                    if isWord { endWord() }
                    bytes.append(contentsOf: UTF8.encode(scalar)!)
                    if isWord { endWord() }
                }
                endWord()
            }
            pieces.bytes = bytes
            pieces.bounds = bounds
        case .prefixSpace:
            rewrite(&pieces) { piece, _, out in
                if piece.first != 0x20 { out.append(0x20) }
                out.append(contentsOf: piece)
            }
        case .metaspace(let replacement, let prepend, let splits):
            rewrite(&pieces) { piece, isFirst, out in
                let isMarked = piece.first == 0x20 || piece.starts(with: replacement)
                if !isMarked, prepend == .always || prepend == .first && isFirst { out.append(contentsOf: replacement) }
                for byte in piece {
                    if byte == 0x20 { out.append(contentsOf: replacement) } else { out.append(byte) }
                }
            }
            guard splits else { return }
            var bounds = [0]
            for piece in 0..<pieces.count {
                let range = pieces.range(piece)
                for start in range.dropFirst() where pieces.bytes[start..<range.upperBound].starts(with: replacement) {
                    bounds.append(start)
                }
                bounds.append(range.upperBound)
            }
            pieces.bounds = bounds
        }
    }

    private func rewrite(_ pieces: inout Pieces, _ body: (ArraySlice<UInt8>, Bool, inout [UInt8]) -> Void) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(pieces.bytes.count + 8)
        var bounds = [0]
        for piece in 0..<pieces.count {
            body(pieces.bytes[pieces.range(piece)], pieces.startsInput && piece == 0, &bytes)
            bounds.append(bytes.count)
        }
        pieces.bytes = bytes
        pieces.bounds = bounds
    }
}
