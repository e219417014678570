/// A GGUF file's tokenizer as the `tokenizer.json` and `tokenizer_config.json` that Hugging Face has for it.

import Primitives

extension GGUFModel {
    /// The small files that the metadata stand for.
    var companionNames: [String] {
        ["config.json"] + (file.metadata["tokenizer.ggml.model"] == nil ? [] : ["tokenizer.json", "tokenizer_config.json"])
    }

    /// - Throws: `Failure` if the tokenizer is of a kind that Tributary does not know, or is wrong.
    func companion(_ name: String) throws(Failure) -> [UInt8]? {
        guard companionNames.contains(name) else { return nil }
        switch name {
        case "config.json": return Array((configuration.pretty + "\n").utf8)
        case "tokenizer.json": return Array(try GGUFTokenizer(file).tokenizer().compact.utf8)
        default: return Array((try GGUFTokenizer(file).tokenizerConfiguration().pretty + "\n").utf8)
        }
    }
}

struct GGUFTokenizer {
    /// What a token is for (llama.h, `llama_token_type`).
    enum Kind: Int {
        case normal = 1, unknown, control, userDefined, unused, byte
    }

    private let metadata: GGUFMetadata
    /// "llama": merges by score; "gpt2": merges by list.
    private let model: String
    private let tokens: [String]
    private let kinds: [Kind]

    init(_ file: GGUFFile) throws(Failure) {
        let metadata = GGUFMetadata(file: file)
        self.metadata = metadata
        model = try metadata.text("tokenizer.ggml.model")
        guard model == "llama" || model == "gpt2" else {
            throw metadata.refused(
                "tokenizer.ggml.model is \(model)", "only llama (SentencePiece's byte-pair encoding) and gpt2 are supported")
        }
        let list = try metadata.array("tokenizer.ggml.tokens")
        guard 1...1 << 22 ~= list.count else {
            throw metadata.refused("tokenizer.ggml.tokens has \(list.count) tokens", "1 to \(1 << 22) are possible")
        }
        let tokens = try list.texts()
        self.tokens = tokens
        var kinds = [Kind](repeating: .normal, count: tokens.count)
        if metadata.has("tokenizer.ggml.token_type") {
            let numbers = try metadata.array("tokenizer.ggml.token_type").integers()
            guard numbers.count == tokens.count else {
                throw metadata.refused(
                    "tokenizer.ggml.token_type has \(numbers.count) elements", "there are \(tokens.count) tokens")
            }
            for (index, number) in numbers.enumerated() {
                guard let kind = Kind(rawValue: number) else {
                    throw metadata.refused("the token_type of token \(index) is \(number)", "1 to 6 are known")
                }
                kinds[index] = kind
            }
        }
        self.kinds = kinds
    }

    func tokenizer() throws(Failure) -> JSONValue {
        // A token that nothing gives is left out, as converters put them where a vocabulary has holes.
        var ids: [[UInt8]: Int] = [:]
        for (id, token) in tokens.enumerated() where kinds[id] != .unused && !token.isEmpty {
            guard ids.updateValue(id, forKey: Array(token.utf8)) == nil else {
                throw metadata.refused(
                    "token \(id), \(token.prefix(80)), is there a second time", "no two tokens are the same")
            }
        }
        let parts = model == "llama" ? try sentencePiece(ids) : try byteLevel()
        var vocabulary: [JSONValue.Member] = []
        var added: [JSONValue] = []
        for (id, token) in tokens.enumerated() where kinds[id] != .unused && !token.isEmpty {
            vocabulary.append(.init(token, .integer(id)))
            guard kinds[id] == .control || kinds[id] == .userDefined || kinds[id] == .unknown else { continue }
            added.append(
                .object([
                    .init("id", .integer(id)), .init("content", .string(token)), .init("single_word", .boolean(false)),
                    .init("lstrip", .boolean(false)), .init("rstrip", .boolean(false)), .init("normalized", .boolean(false)),
                    .init("special", .boolean(kinds[id] != .userDefined)),
                ]))
        }
        return .object([
            .init("version", .string("1.0")), .init("truncation", .null), .init("padding", .null),
            .init("added_tokens", .array(added)), .init("normalizer", parts.normalizer),
            .init("pre_tokenizer", parts.preTokenizer), .init("post_processor", try template()),
            .init("decoder", parts.decoder),
            .init(
                "model",
                .object([
                    .init("type", .string("BPE")), .init("dropout", .null), .init("unk_token", parts.unknown),
                    .init("continuing_subword_prefix", .null), .init("end_of_word_suffix", .null),
                    .init("fuse_unk", .boolean(model == "llama")), .init("byte_fallback", .boolean(model == "llama")),
                    .init("ignore_merges", .boolean(parts.ignoresMerges)), .init("vocab", .object(vocabulary)),
                    .init("merges", .array(parts.merges)),
                ])
            ),
        ])
    }

    func tokenizerConfiguration() throws(Failure) -> JSONValue {
        var members: [JSONValue.Member] = []
        for (key, name) in [("bos_token_id", "bos_token"), ("eos_token_id", "eos_token")] {
            if let id = try token(key) { members.append(.init(name, .string(tokens[id]))) }
        }
        if metadata.has("tokenizer.chat_template") {
            members.append(.init("chat_template", .string(try metadata.text("tokenizer.chat_template"))))
        }
        return .object(members)
    }

    private struct Parts {
        var normalizer = JSONValue.null
        var preTokenizer = JSONValue.null
        var decoder = JSONValue.null
        var unknown = JSONValue.null
        var ignoresMerges = false
        var merges: [JSONValue] = []
    }

    private func token(_ key: String) throws(Failure) -> Int? {
        guard let id = try metadata.optional("tokenizer.ggml." + key) else { return nil }
        guard id < tokens.count else {
            throw metadata.refused("tokenizer.ggml.\(key) is \(id)", "there are \(tokens.count) tokens")
        }
        return id
    }

    // MARK: SentencePiece

    /// llama.cpp merges the pair whose result has the highest score first; that is a list of merges by falling score.
    ///
    /// - Parameter ids: of the tokens that are used
    private func sentencePiece(_ ids: [[UInt8]: Int]) throws(Failure) -> Parts {
        let prefixes = try metadata.flag("tokenizer.ggml.add_space_prefix", default: true)
        func object(_ type: String, _ members: [(String, JSONValue)] = []) -> JSONValue {
            .object([.init("type", .string(type))] + members.map { .init($0.0, $0.1) })
        }
        func replace(_ pattern: String, _ content: String) -> JSONValue {
            object("Replace", [("pattern", .object([.init("String", .string(pattern))])), ("content", .string(content))])
        }
        var parts = Parts()
        let space = replace(" ", "▁")
        parts.normalizer =
            prefixes
            ? object("Sequence", [("normalizers", .array([object("Prepend", [("prepend", .string("▁"))]), space]))]) : space
        let strip = object("Strip", [("content", .string(" ")), ("start", .integer(1)), ("stop", .integer(0))])
        parts.decoder = object(
            "Sequence",
            [("decoders", .array([replace("▁", " "), object("ByteFallback"), object("Fuse")] + (prefixes ? [strip] : [])))])
        if let unknown = try token("unknown_token_id") ?? kinds.firstIndex(of: .unknown) {
            guard kinds[unknown] != .unused else {
                throw metadata.refused("tokenizer.ggml.unknown_token_id is \(unknown)", "that token is marked as unused")
            }
            parts.unknown = .string(tokens[unknown])
        }
        parts.merges = try mergesByScore(ids)
        return parts
    }

    private func mergesByScore(_ ids: [[UInt8]: Int]) throws(Failure) -> [JSONValue] {
        let scores = try metadata.array("tokenizer.ggml.scores").floats()
        guard scores.count == tokens.count else {
            throw metadata.refused("tokenizer.ggml.scores has \(scores.count) elements", "there are \(tokens.count) tokens")
        }
        func isPart(_ id: Int?) -> Bool { id.map { kinds[$0] == .normal || kinds[$0] == .userDefined } ?? false }
        // Of every token its hashes from either end, with which most cuts are seen to be none without a look at all their bytes:
        // time grows with the file's length and not with the square of its tokens'. They are seeded anew in each process, and
        // only say where to look.
        var beginnings: Set<Int> = []
        var endings: Set<Int> = []
        var hashes: [Int] = []
        for token in tokens where !token.isEmpty && token.utf8.count <= Self.longestMerged {
            Self.hash(token.utf8, &hashes)
            beginnings.insert(hashes[hashes.count - 1])
            Self.hash(token.utf8.reversed(), &hashes)
            endings.insert(hashes[hashes.count - 1])
        }
        var merges: [(token: Int32, cut: Int32)] = []
        var textBytes = 0
        let limit = min(Self.mostMerges, Self.mostMergesOfToken * tokens.count)
        var reversed: [Int] = []
        for (id, token) in tokens.enumerated() where kinds[id] == .normal && token.utf8.count <= Self.longestMerged {
            guard scores[id].isFinite else {
                throw metadata.refused("the score of token \(id) is \(scores[id])", "a finite number is expected")
            }
            let bytes = Array(token.utf8)
            Self.hash(bytes, &hashes)
            Self.hash(bytes.reversed(), &reversed)
            for cut in bytes.indices.dropFirst() where bytes[cut] & 0xC0 != 0x80 {
                guard beginnings.contains(hashes[cut - 1]), endings.contains(reversed[bytes.count - cut - 1]),
                    isPart(ids[Array(bytes[..<cut])]), isPart(ids[Array(bytes[cut...])])
                else { continue }
                merges.append((Int32(id), Int32(cut)))
                textBytes += bytes.count
            }
            guard merges.count <= limit, textBytes <= Self.mostMergedBytes else {
                throw metadata.refused(
                    "the first \(id + 1) of its \(tokens.count) tokens can be merged from others in \(merges.count) ways",
                    "no real vocabulary has as many: fetch or convert the model again")
            }
        }
        // Of one token's cuts the one with the longer left part first, as Hugging Face's conversion has them.
        merges.sort {
            let (left, right) = (scores[Int($0.token)], scores[Int($1.token)])
            return left != right ? left > right : $0.token != $1.token ? $0.token < $1.token : $0.cut > $1.cut
        }
        for (before, merge) in zip(merges, merges.dropFirst())
        where before.token != merge.token && scores[Int(before.token)] == scores[Int(merge.token)] {
            throw metadata.refused(
                "tokens \(before.token) and \(merge.token) have one score, \(scores[Int(merge.token)])",
                "which of two is merged first is not known: use the Hugging Face folder, or a file with SentencePiece's scores")
        }
        return merges.map { merge in
            let token = tokens[Int(merge.token)].utf8
            let cut = token.index(token.startIndex, offsetBy: Int(merge.cut))
            return .array([
                .string(String(decoding: token[..<cut], as: UTF8.self)), .string(String(decoding: token[cut...], as: UTF8.self)),
            ])
        }
    }

    /// Hashes of the first byte, of the first two, and so on.
    private static func hash(_ bytes: some Sequence<UInt8>, _ hashes: inout [Int]) {
        hashes.removeAll(keepingCapacity: true)
        var hasher = Hasher()
        for byte in bytes {
            hasher.combine(byte)
            hashes.append(hasher.finalize())
        }
    }

    /// Bytes of a token above which it is not looked at as a merge: SentencePiece's pieces have 16 characters at most, unless
    /// told otherwise.
    private static let longestMerged = 512

    /// Real vocabularies have about two merges a token; a file of long runs of one letter could ask for as many as it has bytes,
    /// and for the memory of all their texts.
    private static let mostMergesOfToken = 64
    private static let mostMerges = 1 << 22
    private static let mostMergedBytes = 1 << 26

    // MARK: Byte-level

    /// How a text is cut into words, by llama.cpp's names for it; only what our own patterns cut in the same places.
    private struct Splitter {
        let names: [String]
        /// Nil: GPT-2's.
        var pattern: String?
        /// Whether each digit is a word of its own.
        var digits = false
        var ignoresMerges = false
        var normalizes = false
        /// Whether a text begins with the begin token where the file does not say.
        var begins = false
    }
    private static let splitters = [
        Splitter(names: ["gpt-2"]),
        Splitter(names: ["smollm", "minerva-7b"], digits: true),
        Splitter(names: ["llama-bpe", "llama3", "llama-v3"], pattern: llama3Pattern, ignoresMerges: true, begins: true),
        Splitter(names: ["smaug-bpe"], pattern: llama3Pattern),
        Splitter(names: ["qwen2"], pattern: qwen2Pattern, normalizes: true),
        Splitter(names: ["deepseek-r1-qwen"], pattern: qwen2Pattern),
    ]
    private static let llama3Pattern =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let qwen2Pattern =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

    private func splitter() throws(Failure) -> Splitter {
        guard metadata.has("tokenizer.ggml.pre") else {
            throw metadata.refused(
                "tokenizer.ggml.pre is missing", "it says how text is cut into words; convert the model with a newer llama.cpp")
        }
        let name = try metadata.text("tokenizer.ggml.pre")
        guard let splitter = Self.splitters.first(where: { $0.names.contains(name) }) else {
            throw metadata.refused(
                "tokenizer.ggml.pre is \(name)",
                "only \(Self.splitters.flatMap(\.names).joined(separator: ", ")) are supported; use the Hugging Face folder of the model"
            )
        }
        return splitter
    }

    private func byteLevel() throws(Failure) -> Parts {
        let splitter = try self.splitter()
        guard try !metadata.flag("tokenizer.ggml.add_space_prefix", default: false) else {
            throw metadata.refused("tokenizer.ggml.add_space_prefix is true", "that is not supported beside byte-level tokens")
        }
        func byteLevel(regex: Bool) -> JSONValue {
            .object([
                .init("type", .string("ByteLevel")), .init("add_prefix_space", .boolean(false)),
                .init("trim_offsets", .boolean(false)), .init("use_regex", .boolean(regex)),
            ])
        }
        func sequence(_ first: JSONValue, regex: Bool) -> JSONValue {
            .object([
                .init("type", .string("Sequence")), .init("pretokenizers", .array([first, byteLevel(regex: regex)])),
            ])
        }
        var parts = Parts()
        if let pattern = splitter.pattern {
            let split = JSONValue.object([
                .init("type", .string("Split")), .init("pattern", .object([.init("Regex", .string(pattern))])),
                .init("behavior", .string("Isolated")), .init("invert", .boolean(false)),
            ])
            parts.preTokenizer = sequence(split, regex: false)
        } else if splitter.digits {
            parts.preTokenizer = sequence(
                .object([.init("type", .string("Digits")), .init("individual_digits", .boolean(true))]), regex: true)
        } else {
            parts.preTokenizer = byteLevel(regex: true)
        }
        // Qwen's own tokenizer composes characters first, which llama.cpp leaves out.
        if splitter.normalizes { parts.normalizer = .object([.init("type", .string("NFC"))]) }
        parts.decoder = byteLevel(regex: true)
        parts.ignoresMerges = splitter.ignoresMerges
        parts.merges = try metadata.array("tokenizer.ggml.merges").texts().map { .string($0) }
        return parts
    }

    /// The tokens that stand around a text.
    private func template() throws(Failure) -> JSONValue {
        // What llama.cpp does where the file does not say.
        var begins = model == "llama"
        if !begins { begins = try splitter().begins }
        var first: [JSONValue] = []
        var last: [JSONValue] = []
        var special: [JSONValue.Member] = []
        func put(_ key: String, _ flag: String, _ standard: Bool, _ list: inout [JSONValue]) throws(Failure) {
            guard try metadata.flag("tokenizer.ggml." + flag, default: standard) else { return }
            guard let id = try token(key) else {
                if !metadata.has("tokenizer.ggml." + flag) { return }
                throw metadata.refused("tokenizer.ggml.\(flag) is true", "tokenizer.ggml.\(key) is missing")
            }
            list.append(
                .object([.init("SpecialToken", .object([.init("id", .string(tokens[id])), .init("type_id", .integer(0))]))]))
            if !special.contains(where: { $0.key == tokens[id] }) {
                special.append(
                    .init(
                        tokens[id],
                        .object([
                            .init("id", .string(tokens[id])), .init("ids", .array([.integer(id)])),
                            .init("tokens", .array([.string(tokens[id])])),
                        ])))
            }
        }
        try put("bos_token_id", "add_bos_token", begins, &first)
        try put("eos_token_id", "add_eos_token", false, &last)
        func text(_ name: String, _ type: Int) -> JSONValue {
            .object([.init("Sequence", .object([.init("id", .string(name)), .init("type_id", .integer(type))]))])
        }
        let single = first + [text("A", 0)] + last
        // Hugging Face's library wants a template for pairs too.
        return .object([
            .init("type", .string("TemplateProcessing")), .init("single", .array(single)),
            .init("pair", .array(single + [text("B", 1)])), .init("special_tokens", .object(special)),
        ])
    }
}
