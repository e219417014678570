/// The tokens that are found in the text before the model sees it: "added_tokens", special and not.

import Primitives

struct AddedToken: Sendable {
    let id: Int32
    let content: String
    /// Not part of what a person wrote or reads: left out by `decode(skipSpecialTokens: true)`.
    let isSpecial: Bool
    /// Matched only where no word character stands on either side.
    let isSingleWord: Bool
    /// Also takes the white space on its left, on its right.
    let stripsLeft: Bool
    let stripsRight: Bool
    /// Looked for in the normalized text rather than in the text itself.
    let isNormalized: Bool

    /// - Parameter part: one element of "added_tokens".
    init(_ part: FilePart) throws(Failure) {
        content = try part.text("content")
        id = try part.tokenID(try part.required("id").value, "\"\(part.name)\"")
        isSpecial = try part.bool("special", default: false)
        isSingleWord = try part.bool("single_word", default: false)
        stripsLeft = try part.bool("lstrip", default: false)
        stripsRight = try part.bool("rstrip", default: false)
        isNormalized = try part.bool("normalized", default: !isSpecial)
    }
}

/// Finds added tokens: the leftmost match, of several there the longest.
struct AddedTokenFinder: Sendable {
    private struct Pattern: Sendable {
        let bytes: [UInt8]
        let token: AddedToken
    }

    private let patterns: [Pattern]
    /// Indices into `patterns` by their first byte, longest first.
    private let byFirstByte: [[Int]]

    /// - Parameter spelling: how the token is written in the text that is searched.
    init(_ tokens: [AddedToken], spelling: (AddedToken) -> [UInt8]) {
        let patterns = tokens.map { Pattern(bytes: spelling($0), token: $0) }.filter { !$0.bytes.isEmpty }
        self.patterns = patterns
        var buckets = Array(repeating: [Int](), count: 256)
        for (index, pattern) in patterns.enumerated() { buckets[Int(pattern.bytes[0])].append(index) }
        byFirstByte = buckets.map { bucket in
            bucket.sorted { (-patterns[$0].bytes.count, $0) < (-patterns[$1].bytes.count, $1) }
        }
    }

    /// The text in order, cut into stretches without a token (nil) and tokens; no stretch is empty.
    /// - Parameter findsSpecial: false leaves special tokens in the text as they are written.
    func split(_ text: [UInt8], findsSpecial: Bool) -> [(token: Int32?, range: Range<Int>)] {
        guard !patterns.isEmpty else { return text.isEmpty ? [] : [(nil, 0..<text.count)] }
        var out: [(Int32?, Range<Int>)] = []
        var done = 0
        var position = 0
        while position < text.count {
            guard let pattern = match(text, position) else {
                position += 1
                continue
            }
            var start = position
            var end = position + pattern.bytes.count
            position = end
            if pattern.token.isSpecial, !findsSpecial { continue }
            if pattern.token.isSingleWord,
                Self.scalar(before: start, text).map(Self.isWord) ?? false || Self.scalar(at: end, text).map(Self.isWord) ?? false
            {
                continue
            }
            if pattern.token.stripsLeft {
                while start > done, let scalar = Self.scalar(before: start, text), scalar.properties.isWhitespace {
                    start -= UTF8.width(scalar)
                }
            }
            if pattern.token.stripsRight {
                while let scalar = Self.scalar(at: end, text), scalar.properties.isWhitespace { end += UTF8.width(scalar) }
            }
            start = max(start, done)
            if done < start { out.append((nil, done..<start)) }
            out.append((pattern.token.id, start..<end))
            done = end
            position = max(position, end)
        }
        if done < text.count { out.append((nil, done..<text.count)) }
        return out
    }

    private func match(_ text: [UInt8], _ position: Int) -> Pattern? {
        for index in byFirstByte[Int(text[position])] {
            let bytes = patterns[index].bytes
            if bytes.count <= text.count - position, text[position..<position + bytes.count].elementsEqual(bytes) {
                return patterns[index]
            }
        }
        return nil
    }

    private static func scalar(at position: Int, _ text: [UInt8]) -> Unicode.Scalar? {
        guard position < text.count else { return nil }
        let end = min(text.count, position + UnicodeClass.byteCount(leading: text[position]))
        return String(decoding: text[position..<end], as: UTF8.self).unicodeScalars.first
    }

    private static func scalar(before position: Int, _ text: [UInt8]) -> Unicode.Scalar? {
        var start = position - 1
        while start > 0, text[start] & 0xC0 == 0x80 { start -= 1 }
        return start < 0 ? nil : scalar(at: start, text)
    }

    /// `\w` (Unicode Technical Standard 18, annex C).
    private static func isWord(_ scalar: Unicode.Scalar) -> Bool {
        if scalar.properties.isAlphabetic || scalar.properties.isJoinControl { return true }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: return true
        default: return false
        }
    }
}
