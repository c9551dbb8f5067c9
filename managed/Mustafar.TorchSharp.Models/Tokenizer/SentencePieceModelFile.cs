using Google.Protobuf;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>The content of a tokenizer.model (SentencePiece's ModelProto). What would change ids and isn't implemented is
/// refused.</summary>
internal sealed class SentencePieceModelFile
{
    private const int Bpe = 2;
    private const int WireTypeBits = 3;

    private readonly string _path;
    private readonly Dictionary<string, int> _vocabulary = [];
    private readonly List<AddedToken> _controls = [];
    private readonly Dictionary<string, (int Id, float Score)> _texts = [];
    private int _modelType = 1;
    private bool _byteFallback;
    private bool _whitespaceAsSuffix;
    private string _normalizer = "";
    private bool _hasCharsmap;
    private bool _removesExtraSpaces = true;
    private bool _escapesSpaces = true;

    private SentencePieceModelFile(string path) => _path = path;

    private enum PieceType
    {
        Normal = 1,
        Unknown = 2,
        Control = 3,
        UserDefined = 4,
        Unused = 5,
        Byte = 6,
    }

    /// <summary>Ids of all pieces.</summary>
    public IReadOnlyDictionary<string, int> Vocabulary => _vocabulary;

    /// <summary>Pieces that never result from a text, such as the beginning token.</summary>
    public IReadOnlyList<AddedToken> Controls => _controls;

    /// <summary>Pieces that a text is merged into; of two, the one with the higher score is made first.</summary>
    public IReadOnlyDictionary<string, (int Id, float Score)> Texts => _texts;

    /// <summary>Whether a space is put before a text.</summary>
    public bool AddsSpaceInFront { get; private set; } = true;

    /// <summary>The piece that begins a text; negative if there is none.</summary>
    public int BeginningId { get; private set; } = 1;

    /// <summary>The piece that ends a text; negative if there is none.</summary>
    public int EndId { get; private set; } = 2;

    /// <summary>Reads a file.</summary>
    /// <exception cref="CheckpointException">It is damaged.</exception>
    /// <exception cref="UnsupportedModelException">It is of a kind that is not implemented.</exception>
    public static SentencePieceModelFile Read(byte[] content, string path)
    {
        SentencePieceModelFile file = new(path);
        try
        {
            file.ReadModel(new CodedInputStream(content));
        }
        catch (InvalidProtocolBufferException exception)
        {
            throw new CheckpointException($"expected a SentencePiece model, but the file is something else or damaged.", path, innerException: exception);
        }

        file.RequireSupported();
        return file;
    }

    private void ReadModel(CodedInputStream input)
    {
        for (uint tag = input.ReadTag(); tag != 0; tag = input.ReadTag())
        {
            switch (tag >> WireTypeBits)
            {
                case 1:
                    ReadPiece(input.ReadBytes().CreateCodedInput());
                    break;
                case 2:
                    ReadTrainer(input.ReadBytes().CreateCodedInput());
                    break;
                case 3:
                    ReadNormalizer(input.ReadBytes().CreateCodedInput());
                    break;
                default:
                    input.SkipLastField();
                    break;
            }
        }
    }

    private void ReadPiece(CodedInputStream input)
    {
        string text = "";
        float score = 0;
        PieceType type = PieceType.Normal;
        for (uint tag = input.ReadTag(); tag != 0; tag = input.ReadTag())
        {
            switch (tag >> WireTypeBits)
            {
                case 1:
                    text = input.ReadString();
                    break;
                case 2:
                    score = input.ReadFloat();
                    break;
                case 3:
                    type = (PieceType)input.ReadEnum();
                    break;
                default:
                    input.SkipLastField();
                    break;
            }
        }

        int id = _vocabulary.Count;
        if (text.Length == 0 || !_vocabulary.TryAdd(text, id))
        {
            throw new CheckpointException($"expected distinct, non-empty pieces, but {id} is '{text}'.", _path);
        }

        if (type is PieceType.Control or PieceType.Unknown)
        {
            _controls.Add(new AddedToken(id, text, IsSpecial: true));
        }
        else if (type is not (PieceType.Normal or PieceType.Byte))
        {
            throw new UnsupportedModelException($"piece '{text}' of type {type} is not supported.", _path);
        }
        else if (type == PieceType.Normal)
        {
            _texts.Add(text, (id, score));
        }
    }

    private void ReadTrainer(CodedInputStream input)
    {
        for (uint tag = input.ReadTag(); tag != 0; tag = input.ReadTag())
        {
            switch (tag >> WireTypeBits)
            {
                case 3:
                    _modelType = input.ReadEnum();
                    break;
                case 24:
                    _whitespaceAsSuffix = input.ReadBool();
                    break;
                case 35:
                    _byteFallback = input.ReadBool();
                    break;
                case 41:
                    BeginningId = input.ReadInt32();
                    break;
                case 42:
                    EndId = input.ReadInt32();
                    break;
                default:
                    input.SkipLastField();
                    break;
            }
        }
    }

    private void ReadNormalizer(CodedInputStream input)
    {
        for (uint tag = input.ReadTag(); tag != 0; tag = input.ReadTag())
        {
            switch (tag >> WireTypeBits)
            {
                case 1:
                    _normalizer = input.ReadString();
                    break;
                case 2:
                    _hasCharsmap = !input.ReadBytes().IsEmpty;
                    break;
                case 3:
                    AddsSpaceInFront = input.ReadBool();
                    break;
                case 4:
                    _removesExtraSpaces = input.ReadBool();
                    break;
                case 5:
                    _escapesSpaces = input.ReadBool();
                    break;
                default:
                    input.SkipLastField();
                    break;
            }
        }
    }

    private void RequireSupported()
    {
        if (_vocabulary.Count == 0)
        {
            throw new CheckpointException("expected a SentencePiece model, but it has no pieces.", _path);
        }

        Refuse(_modelType != Bpe, "a model type other than BPE");
        Refuse(!_byteFallback, "a model without byte fallback");
        Refuse(_whitespaceAsSuffix, "'treat_whitespace_as_suffix'");
        Refuse(_hasCharsmap || _normalizer is not ("" or "identity"), $"normalizer '{_normalizer}'");
        Refuse(_removesExtraSpaces, "'remove_extra_whitespaces'");
        Refuse(!_escapesSpaces, "a model that doesn't escape spaces");

        void Refuse(bool unsupported, string what)
        {
            if (unsupported)
            {
                throw new UnsupportedModelException($"{what} is not supported.", _path);
            }
        }
    }
}
