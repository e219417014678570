/// Rewrites text before it is cut: the steps of "normalizer".

import Primitives
@_spi(_Unicode) import Swift

enum Normalizer: Sendable {
    /// Unicode normalization form C or D, by the standard library's own tables.
    case canonical(composed: Bool)
    case lowercase
    case prepend([UInt8])
    case replace([UInt8], with: [UInt8])

    static func read(_ part: FilePart?) throws(Failure) -> [Normalizer] {
        guard let part else { return [] }
        switch try part.type() {
        case "Sequence":
            var steps: [Normalizer] = []
            for step in try part.parts("normalizers") { steps += try read(step) }
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
        case let type: throw part.unsupported("the type \"\(type)\"")
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
            // Each character by itself, without the rule for a final sigma, as Hugging Face's does.
            var out = ""
            for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars { out += scalar.properties.lowercaseMapping }
            return Array(out.utf8)
        case .prepend(let prefix): return bytes.isEmpty ? bytes : prefix + bytes
        case .replace(let pattern, let content): return replaced(bytes[...], pattern, with: content)
        }
    }
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
