/// Text to token ids and back, as Hugging Face's `tokenizers` does it, from a `tokenizer.json`.
///
/// Text passes through: special and added tokens found as they are written; normalizer; added tokens found in the
/// normalized text; pre-tokenizer, which cuts it into words; byte-pair or WordPiece encoding of each word; template. The file's
/// "truncation" and "padding" are not applied: lengths are the trainer's business.

import Primitives
import Synchronization

public final class Tokenizer: Sendable {
    public let path: String
    /// The largest id + 1, added tokens included.
    public let vocabularySize: Int
    /// The special tokens that `encode(addSpecialTokens: true)` puts before and after the text.
    public let prefixTokens: [Int32]
    public let suffixTokens: [Int32]

    private let model: TokenModel
    private let added: [Int32: AddedToken]
    private let addedIDs: [[UInt8]: Int32]
    private let rawFinder: AddedTokenFinder
    private let normalizedFinder: AddedTokenFinder
    private let normalizers: [Normalizer]
    private let preTokenizers: [PreTokenizer]
    private let spellsBytes: Bool
    private let decoders: [TokenDecoder]?
    private let cache = Mutex(WordCache())

    /// - Parameter path: of a `tokenizer.json`
    /// - Throws: a failure that names the file and the part that is wrong or not supported.
    public convenience init(path: String) throws(Failure) {
        try self.init(bytes: FileReading.bytes(path), path: path)
    }

    /// - Parameter path: what the bytes are called in errors.
    public init(bytes: [UInt8], path: String) throws(Failure) {
        let root = try FilePart(reading: bytes, path: path)
        guard root.value.members != nil else { throw root.failure("a tokenizer must be an object, not \(root.value.kind)") }
        self.path = path
        model = try TokenModel(root.required("model"))
        normalizers = try Normalizer.read(root.part("normalizer"))
        (preTokenizers, spellsBytes) = try PreTokenizer.read(root.part("pre_tokenizer"))
        decoders = try TokenDecoder.read(root.part("decoder"))
        let template = try TokenTemplate(root.part("post_processor"))
        (prefixTokens, suffixTokens) = (template.prefix, template.suffix)

        var tokens: [AddedToken] = []
        var added: [Int32: AddedToken] = [:]
        for part in root.part("added_tokens") == nil ? [] : try root.parts("added_tokens") {
            let token = try AddedToken(part)
            if token.content.isEmpty { continue }
            if let known = model.vocabulary.id(token.content), known != token.id {
                throw part.failure(
                    "\"\(part.name)\" gives \"\(token.content)\" the id \(token.id), \"model.vocab\" gives it \(known)")
            }
            guard added.updateValue(token, forKey: token.id) == nil else {
                throw part.failure("\"\(part.name)\" gives the id \(token.id) a second time")
            }
            tokens.append(token)
        }
        self.added = added
        addedIDs = Dictionary(tokens.map { (Array($0.content.utf8), $0.id) }) { first, _ in first }
        vocabularySize = max(model.vocabulary.size, Int(tokens.map(\.id).max() ?? -1) + 1)
        let steps = normalizers
        rawFinder = AddedTokenFinder(tokens.filter { !$0.isNormalized }) { Array($0.content.utf8) }
        normalizedFinder = AddedTokenFinder(tokens.filter(\.isNormalized)) { token in
            steps.reduce(Array(token.content.utf8)) { $1.apply($0) }
        }
        for id in prefixTokens + suffixTokens where content(id) == nil {
            throw root.failure("\"post_processor\" adds the token \(id), which no token has")
        }
    }

    /// The contents of the special tokens, by id.
    public var specialTokens: [(content: String, id: Int32)] {
        added.values.filter(\.isSpecial).sorted { $0.id < $1.id }.map { ($0.content, $0.id) }
    }

    /// The id of a token by its exact content (in the byte alphabet where the tokenizer is byte-level).
    public func tokenID(_ content: String) -> Int32? {
        addedIDs[Array(content.utf8)] ?? model.vocabulary.id(content)
    }

    public func isSpecial(_ id: Int32) -> Bool { added[id]?.isSpecial ?? false }

    /// - Parameters:
    ///   - addSpecialTokens: puts the tokenizer's own special tokens around the text
    ///   - findsSpecialTokens: false reads special tokens that are written in the text as ordinary text
    public func encode(_ text: String, addSpecialTokens: Bool, findsSpecialTokens: Bool = true) -> [Int32] {
        var tokens = addSpecialTokens ? prefixTokens : []
        var words = WordScratch()
        var merges = MergeScratch()
        let bytes = Array(text.utf8)
        for (token, range) in rawFinder.split(bytes, findsSpecial: findsSpecialTokens) {
            if let token {
                tokens.append(token)
                continue
            }
            let normalized = normalizers.reduce(Array(bytes[range])) { $1.apply($0) }
            for (token, part) in normalizedFinder.split(normalized, findsSpecial: findsSpecialTokens) {
                if let token {
                    tokens.append(token)
                    continue
                }
                var pieces = Pieces(Array(normalized[part]), startsInput: range.lowerBound == 0 && part.lowerBound == 0)
                for step in preTokenizers { step.apply(&pieces, &words) }
                encode(pieces, into: &tokens, &merges)
            }
        }
        if addSpecialTokens { tokens += suffixTokens }
        return tokens
    }

    private func encode(_ pieces: Pieces, into tokens: inout [Int32], _ merges: inout MergeScratch) {
        // Whoever finds the cache in use works without it.
        var shared: WordCache? = cache.withLockIfAvailable { $0.take() } ?? nil
        pieces.bytes.withUnsafeBufferPointer { bytes in
            for piece in 0..<pieces.count {
                let word = UnsafeBufferPointer(rebasing: bytes[pieces.range(piece)])
                if shared?.append(word, to: &tokens) == true { continue }
                let before = tokens.count
                if spellsBytes {
                    merges.word.removeAll(keepingCapacity: true)
                    ByteAlphabet.spell(word, into: &merges.word)
                    let spelt = merges.word
                    spelt.withUnsafeBufferPointer { model.encode($0, into: &tokens, &merges) }
                } else {
                    model.encode(word, into: &tokens, &merges)
                }
                shared?.remember(word, tokens[before...])
            }
        }
        if let shared { cache.withLock { $0.putBack(shared) } }
    }

    /// The text of the tokens; bytes that are not UTF-8 become U+FFFD. Ids that no token has are passed over.
    public func decode(_ ids: [Int32], skipSpecialTokens: Bool) -> String {
        var parts: [[UInt8]] = []
        for id in ids {
            if skipSpecialTokens, isSpecial(id) { continue }
            if let content = content(id) { parts.append(content) }
        }
        guard let decoders else { return String(decoding: Array(parts.joined(separator: [0x20])), as: UTF8.self) }
        for decoder in decoders { parts = decoder.apply(parts) }
        return String(decoding: Array(parts.joined()), as: UTF8.self)
    }

    private func content(_ id: Int32) -> [UInt8]? {
        if let token = added[id] { return Array(token.content.utf8) }
        return model.vocabulary.token(id).map { Array($0) }
    }
}
