/// Turns the contents of tokens back into text: the steps of "decoder".

import Primitives

enum TokenDecoder: Sendable {
    /// Spellings in the byte alphabet; bytes that are not UTF-8 become U+FFFD.
    case byteLevel
    case replace([UInt8], with: [UInt8])
    /// Runs of "<0xHH>" become their bytes, or one U+FFFD a byte if they are not UTF-8.
    case byteFallback
    case fuse
    /// Takes up to `start` and `stop` characters from the ends of each token.
    case strip(content: [UInt8], start: Int, stop: Int)
    case metaspace(replacement: [UInt8], dropsFirst: Bool)
    /// Spaces between words, none before a token that goes on with one; `cleans` takes some spaces around punctuation and
    /// English contractions, in each token.
    case wordPiece(prefix: [UInt8], cleans: Bool)

    /// What `wordPiece` cleans, in this order.
    private static let cleaning: [(from: [UInt8], to: [UInt8])] = [
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
        (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ].map { (Array($0.0.utf8), Array($0.1.utf8)) }

    /// Nil where the file has no decoder: tokens are then joined by spaces.
    static func read(_ part: FilePart?) throws(Failure) -> [TokenDecoder]? {
        guard let part else { return nil }
        let steps = try steps(part)
        try part.checkGrowth(
            steps.map { if case .replace(let pattern, let content) = $0 { replacementGrowth(pattern, content) } else { 1 } })
        return steps
    }

    private static func steps(_ part: FilePart) throws(Failure) -> [TokenDecoder] {
        switch try part.type() {
        case "Sequence":
            var steps: [TokenDecoder] = []
            for step in try part.parts("decoders") { steps += try Self.steps(step) }
            return steps
        case "ByteLevel": return [.byteLevel]
        case "ByteFallback": return [.byteFallback]
        case "Fuse": return [.fuse]
        case "Replace":
            guard let text = try part.required("pattern").part("String")?.text(), !text.isEmpty else {
                throw part.unsupported("a pattern that is no plain string")
            }
            return [.replace(Array(text.utf8), with: Array(try part.text("content").utf8))]
        case "Strip":
            let content = try part.text("content")
            guard content.unicodeScalars.count == 1 else { throw part.failure("\"\(part.name).content\" must be one character") }
            let (start, stop) = (try part.int("start"), try part.int("stop"))
            guard start >= 0, stop >= 0 else { throw part.failure("\"\(part.name)\" must not strip a negative count") }
            return [.strip(content: Array(content.utf8), start: start, stop: stop)]
        case "Metaspace":
            let replacement = try part.part("replacement")?.text() ?? "▁"
            guard replacement.unicodeScalars.count == 1 else { throw part.unsupported("a replacement of several characters") }
            var dropsFirst = try part.bool("add_prefix_space", default: true)
            if let scheme = try part.part("prepend_scheme")?.text() { dropsFirst = scheme != "never" }
            return [.metaspace(replacement: Array(replacement.utf8), dropsFirst: dropsFirst)]
        case "WordPiece":
            return [
                .wordPiece(
                    prefix: Array((try part.part("prefix")?.text() ?? "##").utf8), cleans: try part.bool("cleanup", default: true)
                )
            ]
        case let type: throw part.unsupported("the type \"\(type)\"")
        }
    }

    func apply(_ tokens: [[UInt8]]) -> [[UInt8]] {
        switch self {
        case .byteLevel:
            var bytes: [UInt8] = []
            for token in tokens { ByteAlphabet.read(token[...], into: &bytes) }
            return [Array(String(decoding: bytes, as: UTF8.self).utf8)]
        case .replace(let pattern, let content): return tokens.map { replaced($0[...], pattern, with: content) }
        case .byteFallback: return fallback(tokens)
        case .fuse: return [Array(tokens.joined())]
        case .strip(let content, let start, let stop):
            return tokens.map { token in
                var rest = token[...]
                for _ in 0..<start {
                    guard rest.starts(with: content) else { break }
                    rest = rest.dropFirst(content.count)
                }
                for _ in 0..<stop {
                    guard rest.count >= content.count, rest.suffix(content.count).elementsEqual(content) else { break }
                    rest = rest.dropLast(content.count)
                }
                return Array(rest)
            }
        case .metaspace(let replacement, let dropsFirst):
            return tokens.enumerated().map { index, token in
                replaced(token[...], replacement, with: index == 0 && dropsFirst ? [] : [0x20])
            }
        case .wordPiece(let prefix, let cleans):
            return tokens.enumerated().map { index, token in
                var text = token
                if index > 0 {
                    text = !prefix.isEmpty && token.starts(with: prefix) ? Array(token.dropFirst(prefix.count)) : [0x20] + token
                }
                if cleans { for step in Self.cleaning { text = replaced(text[...], step.from, with: step.to) } }
                return text
            }
        }
    }

    private func fallback(_ tokens: [[UInt8]]) -> [[UInt8]] {
        var out: [[UInt8]] = []
        var run: [UInt8] = []
        func flush() {
            guard !run.isEmpty else { return }
            if String(validating: run, as: UTF8.self) != nil {
                out.append(run)
            } else {
                out += Array(repeating: [0xEF, 0xBF, 0xBD], count: run.count)
            }
            run = []
        }
        for token in tokens {
            if let byte = Self.byte(token) {
                run.append(byte)
            } else {
                flush()
                out.append(token)
            }
        }
        flush()
        return out
    }

    /// The byte of "<0xHH>".
    private static func byte(_ token: [UInt8]) -> UInt8? {
        guard token.count == 6, token.starts(with: Array("<0x".utf8)), token[5] == UInt8(ascii: ">") else { return nil }
        return UInt8(String(decoding: token[3..<5], as: UTF8.self), radix: 16)
    }
}
