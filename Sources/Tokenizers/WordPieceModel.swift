/// WordPiece encoding of one word: the longest token that the vocabulary has, then the longest that goes on from there, and so
/// on (Schuster and Nakajima 2012; greedy as in BERT, Devlin et al. 2019, and Hugging Face's `tokenizers`).

import Primitives

struct WordPieceModel: Sendable {
    let vocabulary: Vocabulary
    private let unknown: Int32
    /// Marks tokens that go on with a word: "##".
    private let prefix: [UInt8]
    /// Words of more characters are unknown.
    private let longestWord: Int
    /// Bytes of the longest token.
    private let longestToken: Int

    /// - Parameter part: "model", of the type "WordPiece".
    init(_ part: FilePart) throws(Failure) {
        vocabulary = try Vocabulary(part.required("vocab"))
        let token = try part.text("unk_token")
        guard let id = vocabulary.id(token) else {
            throw part.failure("\"model.unk_token\" is \"\(token)\", which \"model.vocab\" lacks")
        }
        unknown = id
        prefix = Array((try part.part("continuing_subword_prefix")?.text() ?? "##").utf8)
        longestWord = part.part("max_input_chars_per_word") == nil ? 100 : try part.int("max_input_chars_per_word")
        // The time for a word grows with its square, and more if tokens are as long.
        guard 0...1000 ~= longestWord else {
            throw part.failure("\"model.max_input_chars_per_word\" is \(longestWord), where 0 to 1000 are supported")
        }
        longestToken = vocabulary.longestToken
    }

    /// Appends the tokens of one word (UTF-8, not empty), or the unknown token if the vocabulary cannot spell it.
    func encode(_ word: UnsafeBufferPointer<UInt8>, into tokens: inout [Int32], _ scratch: inout MergeScratch) {
        guard word.count(where: { $0 & 0xC0 != 0x80 }) <= longestWord else {
            tokens.append(unknown)
            return
        }
        let before = tokens.count
        var start = 0
        while start < word.count {
            scratch.word.removeAll(keepingCapacity: true)
            if start > 0 { scratch.word.append(contentsOf: prefix) }
            let marked = scratch.word.count
            scratch.word.append(contentsOf: word[start..<min(word.count, start + longestToken)])
            // No token reaches further; a character may be cut here, which no token then equals.
            var end = min(word.count, start + longestToken)
            var found: Int32?
            while end > start, found == nil {
                found = vocabulary.id(scratch.word[..<(marked + end - start)])
                if found != nil { break }
                // To the character before.
                repeat { end -= 1 } while end > start && word[end] & 0xC0 == 0x80
            }
            guard let found else {
                tokens.removeSubrange(before...)
                tokens.append(unknown)
                return
            }
            tokens.append(found)
            start = end
        }
    }
}

/// The model of a `tokenizer.json`.
enum TokenModel: Sendable {
    case bytePair(BytePairModel)
    case wordPiece(WordPieceModel)

    /// - Parameter part: "model"; without a type it is BPE, as older files have it.
    init(_ part: FilePart) throws(Failure) {
        switch part.part("type") == nil ? "BPE" : try part.type() {
        case "BPE": self = .bytePair(try BytePairModel(part))
        case "WordPiece": self = .wordPiece(try WordPieceModel(part))
        case let type: throw part.unsupported("the type \"\(type)\"")
        }
    }

    var vocabulary: Vocabulary {
        switch self {
        case .bytePair(let model): model.vocabulary
        case .wordPiece(let model): model.vocabulary
        }
    }

    /// Appends the tokens of one word (UTF-8, not empty).
    func encode(_ word: UnsafeBufferPointer<UInt8>, into tokens: inout [Int32], _ scratch: inout MergeScratch) {
        switch self {
        case .bytePair(let model): model.encode(word, into: &tokens, &scratch)
        case .wordPiece(let model): model.encode(word, into: &tokens, &scratch)
        }
    }
}
