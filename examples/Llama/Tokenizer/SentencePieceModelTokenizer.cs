using System.Text.Json;
using Microsoft.ML.Tokenizers;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>SentencePiece's BPE with byte fallback, as in the tokenizer.model of Llama 2 and Mistral.</summary>
/// <remarks>
/// tokenizer_config.json beside it says whether a text gets the tokens that begin and end it, and whether a space goes in front of each
/// part between special tokens ("legacy", the default) or of the whole text alone.
/// </remarks>
internal sealed class SentencePieceModelTokenizer : TextTokenizer
{
    private readonly SentencePieceTokenizer _pieces;
    private readonly bool _spaceInFront;
    private readonly bool _spaceInFrontOfParts;

    private SentencePieceModelTokenizer(
        SentencePieceModelFile file,
        SentencePieceTokenizer pieces,
        int[] byteIds,
        IReadOnlyList<int> prefix,
        IReadOnlyList<int> suffix,
        bool legacy)
        : base(file.Controls, ByteFallback.Bytes(file.Vocabulary, byteIds))
    {
        _pieces = pieces;
        _spaceInFront = file.AddsSpaceInFront;
        _spaceInFrontOfParts = file.AddsSpaceInFront && legacy;
        Prefix = prefix;
        Suffix = suffix;
    }

    public override IReadOnlyList<int> Prefix { get; }

    public override bool DropsFirstSpace => _spaceInFront;

    private protected override IReadOnlyList<int> Suffix { get; }

    /// <summary>Reads a tokenizer.model.</summary>
    /// <exception cref="CheckpointException">It, or the tokenizer_config.json beside it, is damaged.</exception>
    /// <exception cref="UnsupportedModelException">It is of a kind that is not implemented.</exception>
    public static new SentencePieceModelTokenizer Load(string path)
    {
        byte[] content = File.ReadAllBytes(path);
        SentencePieceModelFile file = SentencePieceModelFile.Read(content, path);
        (bool begins, bool ends, bool legacy) = ReadConfig(Path.Combine(Path.GetDirectoryName(path) ?? "", "tokenizer_config.json"));
        int[] byteIds = ByteFallback.Ids(file.Vocabulary, path);
        using MemoryStream stream = new(content);
        return new SentencePieceModelTokenizer(
            file,
            SentencePieceTokenizer.Create(stream, addBeginningOfSentence: false, addEndOfSentence: false),
            byteIds,
            Frame(begins, file.BeginningId, file, path),
            Frame(ends, file.EndId, file, path),
            legacy);
    }

    private protected override void EncodePlain(string text, bool isFirst, List<int> ids)
    {
        string spaced = text.Replace(' ', ByteFallback.Space);
        bool adds = isFirst ? _spaceInFront : _spaceInFrontOfParts;
        ids.AddRange(_pieces.EncodeToIds(
            adds ? ByteFallback.Space + spaced : spaced,
            addBeginningOfSentence: false,
            addEndOfSentence: false,
            considerPreTokenization: false,
            considerNormalization: false));
    }

    private static (bool Begins, bool Ends, bool Legacy) ReadConfig(string path)
    {
        if (!File.Exists(path))
        {
            return (true, false, true);
        }

        using JsonDocument document = JsonFile.Open(path);
        JsonElement root = document.RootElement;
        return (
            root.FindBoolean("add_bos_token", path) ?? true,
            root.FindBoolean("add_eos_token", path) ?? false,
            root.FindBoolean("legacy", path) ?? true);
    }

    private static int[] Frame(bool added, int id, SentencePieceModelFile file, string path) =>
        !added || id < 0 ? []
        : file.Controls.Any(token => token.Id == id) ? [id]
        : throw new CheckpointException($"expected a control piece that begins or ends a text, but {id} is none.", path);
}
