/// Rewrites text before it is cut: the steps of "normalizer".

import Primitives
@_spi(_Unicode) import Swift

enum Normalizer: Sendable {
    /// Unicode normalization form C or D, by the standard library's own tables.
    case canonical(composed: Bool)
    case lowercase
    case prepend([UInt8])
    case replace([UInt8], with: [UInt8])
    /// BERT's: control characters are left out, and all white space becomes U+0020.
    case clean
    /// BERT's: spaces around each Chinese character.
    case spacedIdeographs
    /// Nonspacing marks are left out.
    case withoutMarks

    static func read(_ part: FilePart?) throws(Failure) -> [Normalizer] {
        guard let part else { return [] }
        let steps = try steps(part)
        try part.checkGrowth(steps.map(\.growth))
        return steps
    }

    private static func steps(_ part: FilePart) throws(Failure) -> [Normalizer] {
        switch try part.type() {
        case "Sequence":
            var steps: [Normalizer] = []
            for step in try part.parts("normalizers") { steps += try Self.steps(step) }
            return steps
        case "NFC": return [.canonical(composed: true)]
        case "NFD": return [.canonical(composed: false)]
        case "Lowercase": return [.lowercase]
        case "Prepend": return [.prepend(Array(try part.text("prepend").utf8))]
        case "Replace":
            let pattern = try part.required("pattern")
            guard let text = try pattern.part("String")?.text(), !text.isEmpty else {
                throw part.unsupported("a pattern that is no plain string")
            }
            return [.replace(Array(text.utf8), with: Array(try part.text("content").utf8))]
        case "BertNormalizer":
            let lowercase = try part.bool("lowercase", default: true)
            var steps: [Normalizer] = []
            if try part.bool("clean_text", default: true) { steps.append(.clean) }
            if try part.bool("handle_chinese_chars", default: true) { steps.append(.spacedIdeographs) }
            if try part.bool("strip_accents", default: lowercase) { steps += [.canonical(composed: false), .withoutMarks] }
            if lowercase { steps.append(.lowercase) }
            return steps
        case let type: throw part.unsupported("the type \"\(type)\"")
        }
    }

    /// How many times as long a text can become, at most.
    private var growth: Int {
        switch self {
        // U+0390 of two bytes becomes three characters of two (Unicode's FAQ on normalization, "maximum expansion factors").
        case .canonical: 3
        case .lowercase, .spacedIdeographs: 2
        case .prepend(let prefix): prefix.count + 1
        case .replace(let pattern, let content): replacementGrowth(pattern, content)
        case .clean, .withoutMarks: 1
        }
    }

    func apply(_ bytes: [UInt8]) -> [UInt8] {
        switch self {
        case .canonical(let composed):
            // Below U+0300 nothing composes (0xCC leads U+0300), and below U+0080 nothing decomposes.
            if bytes.allSatisfy({ $0 < (composed ? 0xCC : 0x80) }) { return bytes }
            let text = String(decoding: bytes, as: UTF8.self)
            var out: [UInt8] = []
            out.reserveCapacity(bytes.count + 16)
            if composed {
                for scalar in text._nfc { out.append(contentsOf: UTF8.encode(scalar)!) }
            } else {
                for scalar in text._nfd { out.append(contentsOf: UTF8.encode(scalar)!) }
            }
            return out
        case .lowercase:
            if bytes.allSatisfy({ $0 < 0x80 }) {
                return bytes.map { UInt8(ascii: "A")...UInt8(ascii: "Z") ~= $0 ? $0 | 0x20 : $0 }
            }
            // Each character by itself, without the rule for a final sigma, as Hugging Face's does.
            var out = ""
            for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars { out += scalar.properties.lowercaseMapping }
            return Array(out.utf8)
        case .prepend(let prefix): return bytes.isEmpty ? bytes : prefix + bytes
        case .replace(let pattern, let content): return replaced(bytes[...], pattern, with: content)
        case .clean:
            if bytes.allSatisfy({ 0x20..<0x7F ~= $0 }) { return bytes }
            return rewritten(bytes) { scalar, out in
                if scalar.isLeftOutByBERT { return }
                out.append(scalar.properties.isWhitespace ? " " : scalar)
            }
        case .spacedIdeographs:
            // 0xE3 leads U+3000, and no ideograph lies below U+3400.
            if bytes.allSatisfy({ $0 < 0xE3 }) { return bytes }
            return rewritten(bytes) { scalar, out in
                out.append(contentsOf: scalar.isIdeographOfBERT ? [" ", scalar, " "] : [scalar])
            }
        case .withoutMarks:
            if bytes.allSatisfy({ $0 < 0x80 }) { return bytes }
            return rewritten(bytes) { scalar, out in
                if !(scalar.properties.generalCategory == .nonspacingMark && scalar.isKnownToBERT) { out.append(scalar) }
            }
        }
    }

    private func rewritten(
        _ bytes: [UInt8], _ body: (Unicode.Scalar, inout String.UnicodeScalarView) -> Void
    ) -> [UInt8] {
        var out = String.UnicodeScalarView()
        for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars { body(scalar, &out) }
        return Array(String(out).utf8)
    }
}

/// What BERT's normalizer and pre-tokenizer ask of a character.
extension Unicode.Scalar {
    /// Hugging Face's tables of categories are those of Unicode 8: to them later characters have none.
    var isKnownToBERT: Bool { properties.age.map { $0.major <= 8 } ?? false }

    /// U+0000, U+FFFD, and controls, formats and private use but for tab, line feed and carriage return.
    var isLeftOutByBERT: Bool {
        switch self {
        case "\t", "\n", "\r": return false
        case "\u{0}", "\u{FFFD}": return true
        default: break
        }
        switch properties.generalCategory {
        case .control, .format, .privateUse: return isKnownToBERT
        default: return false
        }
    }

    /// The CJK blocks that Hugging Face's normalizer names; U+2B820...U+2B91F, where extension E begins, is not among them.
    var isIdeographOfBERT: Bool {
        switch value {
        case 0x3400...0x4DBF, 0x4E00...0x9FFF, 0xF900...0xFAFF, 0x20000...0x2A6DF, 0x2A700...0x2B81F, 0x2B920...0x2CEAF,
            0x2F800...0x2FA1F:
            true
        default: false
        }
    }

    /// Every character of ASCII that is neither letter, number, space nor control, and all Unicode punctuation.
    var isPunctuationOfBERT: Bool {
        switch value {
        case 0x21...0x2F, 0x3A...0x40, 0x5B...0x60, 0x7B...0x7E: return true
        case ..<0x80: return false
        default: break
        }
        switch properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            return isKnownToBERT
        default: return false
        }
    }
}

/// How many times as long `replaced` can make a text, at most.
func replacementGrowth(_ pattern: [UInt8], _ content: [UInt8]) -> Int {
    max(1, (content.count + pattern.count - 1) / pattern.count)
}

/// The text with every occurrence of `pattern` (not empty) replaced, found from left to right.
func replaced(_ text: ArraySlice<UInt8>, _ pattern: [UInt8], with content: [UInt8]) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(text.count + 8)
    var index = text.startIndex
    while index < text.endIndex {
        if text[index] == pattern[0], text[index...].starts(with: pattern) {
            out.append(contentsOf: content)
            index += pattern.count
        } else {
            out.append(text[index])
            index += 1
        }
    }
    return out
}
