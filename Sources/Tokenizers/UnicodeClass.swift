/// What a tokenizer's patterns ask of a character: `\p{L}`, `\p{N}`, `\s`, a line break, or none of them.

enum UnicodeClass: UInt8, Sendable {
    /// None of the others: punctuation, marks, symbols, controls, unassigned.
    case other
    /// `\p{L}`
    case letter
    /// `\p{N}`
    case number
    /// `\s` but neither U+0020 nor a line break.
    case space
    /// U+0020, which may lead a word.
    case blank
    /// `[\r\n]`
    case lineBreak

    var isSpace: Bool { rawValue >= UnicodeClass.space.rawValue }

    init(_ scalar: Unicode.Scalar) {
        switch scalar {
        case " ": self = .blank
        case "\r", "\n": self = .lineBreak
        default:
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: self = .letter
            case .decimalNumber, .letterNumber, .otherNumber: self = .number
            default: self = scalar.properties.isWhitespace ? .space : .other
            }
        }
    }

    /// The classes of U+0000...U+FFFF, so that common text needs no search in the property tables.
    private static let basic: [UnicodeClass] = (0..<0x10000).map { Unicode.Scalar($0).map { UnicodeClass($0) } ?? .other }

    /// The bytes of a UTF-8 sequence that starts with this byte; 1 for a byte that cannot start one.
    static func byteCount(leading byte: UInt8) -> Int { byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4 }

    /// The classes of the characters of a text, and where each starts, with the end of the text last.
    static func classify(_ bytes: ArraySlice<UInt8>, classes: inout [UnicodeClass], starts: inout [Int]) {
        classes.removeAll(keepingCapacity: true)
        starts.removeAll(keepingCapacity: true)
        var start = bytes.startIndex
        while start < bytes.endIndex {
            let count = min(byteCount(leading: bytes[start]), bytes.endIndex - start)
            var value = UInt32(bytes[start])
            switch count {
            case 1: break
            case 2: value &= 0x1F
            case 3: value &= 0x0F
            default: value &= 0x07
            }
            for offset in 1..<max(count, 1) { value = value << 6 | UInt32(bytes[start + offset] & 0x3F) }
            starts.append(start)
            if value < 0x10000 {
                classes.append(basic[Int(value)])
            } else {
                classes.append(Unicode.Scalar(value).map { UnicodeClass($0) } ?? .other)
            }
            start += count
        }
        starts.append(bytes.endIndex)
    }
}
