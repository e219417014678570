/// A BERT with a WordPiece tokenizer that fits it, and short texts to classify.

import FoundationEssentials
import Primitives

public enum TinyEncoder {
    public static let labels = ["animal", "fruit", "tool"]
    private static let words = [
        ["cat", "dog", "horse", "wolf"], ["apple", "cherry", "pear", "plum"], ["axe", "drill", "hammer", "saw"],
    ]

    /// Copies a golden checkpoint and puts a tokenizer of single letters beside it.
    ///
    /// - Parameter isBare: an encoder without a class of its own for classification: texts become means of hidden states
    public static func write(_ golden: String = "bert-classifier", isBare: Bool = false, to folder: String) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let source = Golden.path("models/" + golden)
        var configuration = try JSONValue(parsing: Data(contentsOf: URL(filePath: source + "/config.json")))
        if isBare { configuration.set("architectures", .array([.string("BertModel")])) }
        try Data(configuration.compact.utf8).write(to: URL(filePath: folder + "/config.json"))
        try FileManager.default.copyItem(atPath: source + "/model.safetensors", toPath: folder + "/model.safetensors")
        try Data(tokenizer.utf8).write(to: URL(filePath: folder + "/tokenizer.json"))
    }

    /// [PAD], [UNK], [CLS], [SEP], and each letter at the start of a word and within one.
    public static let tokenizer: String = {
        let letters = (UInt8(ascii: "a")...UInt8(ascii: "z")).map { String(Character(Unicode.Scalar($0))) }
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + letters + letters.map { "##" + $0 }
        let vocabulary = tokens.enumerated().map { JSONValue.Member($1, .integer($0)) }
        let special = (0..<4).map { id in
            JSONValue.object([
                .init("id", .integer(id)), .init("content", .string(tokens[id])), .init("special", .boolean(true)),
                .init("normalized", .boolean(false)),
            ])
        }
        func pair(_ id: Int) -> JSONValue { .array([.string(tokens[id]), .integer(id)]) }
        return JSONValue.object([
            .init("version", .string("1.0")), .init("added_tokens", .array(special)),
            .init("normalizer", .object([.init("type", .string("BertNormalizer"))])),
            .init("pre_tokenizer", .object([.init("type", .string("BertPreTokenizer"))])),
            .init(
                "post_processor",
                .object([.init("type", .string("BertProcessing")), .init("sep", pair(3)), .init("cls", pair(2))])),
            .init("decoder", .object([.init("type", .string("WordPiece"))])),
            .init(
                "model",
                .object([
                    .init("type", .string("WordPiece")), .init("unk_token", .string("[UNK]")),
                    .init("vocab", .object(vocabulary)),
                ])),
        ]).compact
    }()

    /// Texts under "text", labels under "category".
    public static func records(_ count: Int, seed: UInt64 = 5) -> String {
        var generator = SeededGenerator(seed: seed, purpose: "texts")
        return (0..<count).map { index in
            let label = index % labels.count
            let word = words[label][Int(generator.next() % 4)]
            return #"{"text": "the \#(word)", "category": "\#(labels[label])"}"# + "\n"
        }.joined()
    }
}
