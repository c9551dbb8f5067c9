namespace Mustafar.Models.Chat.Jinja;

/// <summary>Tokens, read one by one.</summary>
internal sealed class TokenReader(List<Token> tokens)
{
    private int _at;

    /// <summary>The next token.</summary>
    public Token Current => tokens[_at];

    /// <summary>The one behind it.</summary>
    public Token Following => tokens[Math.Min(_at + 1, tokens.Count - 1)];

    /// <summary>Reads a token.</summary>
    public Token Take() => Current.Kind == TokenKind.End ? Current : tokens[_at++];

    /// <summary>Whether the next token is a name or operator; a string with the same text is not.</summary>
    public bool Is(string text) => Current.Kind is TokenKind.Name or TokenKind.Operator && Current.Text == text;

    /// <summary>Reads a name or operator if it is the next token.</summary>
    public bool TrySkip(string text)
    {
        bool found = Is(text);
        _at += found ? 1 : 0;
        return found;
    }

    /// <summary>Reads an operator.</summary>
    /// <exception cref="JinjaException">Something else comes.</exception>
    public void Expect(string text)
    {
        if (!TrySkip(text))
        {
            throw Error($"expected '{text}', but got {Current}.");
        }
    }

    /// <summary>Reads a token of a kind.</summary>
    /// <exception cref="JinjaException">Something else comes.</exception>
    public Token Expect(TokenKind kind) => Current.Kind == kind ? Take()
        : throw Error(kind switch
        {
            TokenKind.BlockEnd => $"expected '%}}', but got {Current}.",
            TokenKind.VariableEnd => $"expected '}}}}', but got {Current}.",
            _ => $"expected a name, but got {Current}.",
        });

    /// <summary>Reads a name.</summary>
    public string ExpectName() => Expect(TokenKind.Name).Text;

    /// <summary>Reads a given name.</summary>
    public void ExpectName(string name) => Expect(name);

    /// <summary>An error at the next token.</summary>
    public JinjaException Error(string message) => new(message, Current.Line);
}
