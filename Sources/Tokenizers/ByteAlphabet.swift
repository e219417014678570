/// The alphabet in which byte-level tokenizers spell bytes: printable Latin-1 characters stand for themselves, the
/// other 68 bytes for U+0100, U+0101, ... in order (GPT-2's `encoder.py`, `bytes_to_unicode`).

enum ByteAlphabet {
    /// The UTF-8 of the character of each byte.
    private static let spelling: [[UInt8]] = {
        var next: UInt32 = 0x100
        return (0..<256).map { byte -> [UInt8] in
            let isItself = 0x21...0x7E ~= byte || 0xA1...0xAC ~= byte || 0xAE...0xFF ~= byte
            let value = isItself ? UInt32(byte) : next
            if !isItself { next += 1 }
            return Array(UTF8.encode(Unicode.Scalar(value)!)!)
        }
    }()

    /// The byte of each character below U+0144, -1 where a character stands for none.
    private static let bytes: [Int16] = {
        var table = Array(repeating: Int16(-1), count: 0x144)
        for (byte, spelling) in spelling.enumerated() {
            table[Int(String(decoding: spelling, as: UTF8.self).unicodeScalars.first!.value)] = Int16(byte)
        }
        return table
    }()

    static func spell(_ text: UnsafeBufferPointer<UInt8>, into word: inout [UInt8]) {
        for byte in text { word.append(contentsOf: spelling[Int(byte)]) }
    }

    /// Appends the bytes that a token spells, or the token as it is if it has a character outside the alphabet.
    static func read(_ token: ArraySlice<UInt8>, into out: inout [UInt8]) {
        let before = out.count
        var index = token.startIndex
        while index < token.endIndex {
            let first = token[index]
            // No character of the alphabet needs more than two bytes.
            let isPair = 0xC2..<0xE0 ~= first && index + 1 < token.endIndex
            let value = isPair ? Int(first & 0x1F) << 6 | Int(token[index + 1] & 0x3F) : Int(first)
            guard first < 0x80 || isPair, value < bytes.count, bytes[value] >= 0 else {
                out.removeSubrange(before...)
                out.append(contentsOf: token)
                return
            }
            out.append(UInt8(bytes[value]))
            index += isPair ? 2 : 1
        }
    }
}
