using System.Buffers;
using System.Globalization;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>
/// Splits a template into tokens by the rules of Jinja 3 with <c>trim_blocks</c> and <c>lstrip_blocks</c>, the settings of transformers.
/// </summary>
/// <remarks>The first line end after a block or comment is removed, and so is white space between a line's start and a block or comment.
/// <c>-</c> in a tag strips all white space on its side, <c>+</c> keeps it.</remarks>
internal sealed class Lexer
{
    private static readonly string[] s_operators =
        ["**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";"];

    private static readonly SearchValues<char> s_tagBegin = SearchValues.Create("{");

    private readonly string _source;
    private readonly List<Token> _tokens = [];
    private int _at;
    private int _line = 1;
    private int _lineAt;

    // Whether the previous tag ended with a line end, which it consumed.
    private bool _startsLine = true;

    private Lexer(string source)
    {
        // Jinja treats all line ends alike, and ignores the last one of a template.
        source = source.Replace("\r\n", "\n", StringComparison.Ordinal).Replace('\r', '\n');
        _source = source.EndsWith('\n') ? source[..^1] : source;
    }

    /// <summary>Splits a template.</summary>
    /// <exception cref="JinjaException">A tag or string is not closed, or a character has no meaning.</exception>
    public static List<Token> Split(string source)
    {
        Lexer lexer = new(source);
        lexer.Run();
        return lexer._tokens;
    }

    private void Run()
    {
        while (_at < _source.Length)
        {
            int open = FindTag();
            if (open < 0)
            {
                AddData(_source[_at..]);
                _at = _source.Length;
                break;
            }

            string data = _source[_at..open];
            char kind = _source[open + 1];
            _at = open + 2;
            char sign = _at < _source.Length && _source[_at] is '-' or '+' ? _source[_at++] : ' ';
            AddData(Strip(data, sign, isVariable: kind == '{'));
            switch (kind)
            {
                case '#':
                    Comment();
                    break;
                case '%' when TryWord("raw"):
                    Raw();
                    break;
                case '%':
                    Inside(TokenKind.BlockBegin, "{%", TokenKind.BlockEnd, "%}");
                    break;
                default:
                    Inside(TokenKind.VariableBegin, "{{", TokenKind.VariableEnd, "}}");
                    break;
            }
        }

        Add(TokenKind.End, "");
    }

    private int FindTag()
    {
        for (int i = _at; ; i++)
        {
            int step = _source.AsSpan(i).IndexOfAny(s_tagBegin);
            i += step;
            if (step < 0 || i + 1 >= _source.Length)
            {
                return -1;
            }

            if (_source[i + 1] is '{' or '%' or '#')
            {
                return i;
            }
        }
    }

    private string Strip(string data, char sign, bool isVariable)
    {
        if (sign == '-')
        {
            return data.TrimEnd(PythonString.Spaces);
        }

        if (sign == '+' || isVariable)
        {
            return data;
        }

        int start = data.LastIndexOf('\n') + 1;
        return (start > 0 || _startsLine) && data.AsSpan(start).Trim(PythonString.Spaces).IsEmpty ? data[..start] : data;
    }

    private void AddData(string data)
    {
        if (data.Length > 0)
        {
            _tokens.Add(new Token(TokenKind.Data, data, _line));
        }
    }

    private void Comment()
    {
        int line = Line(_at);
        int end = _source.IndexOf("#}", _at, StringComparison.Ordinal);
        if (end < 0)
        {
            throw new JinjaException("the comment has no end.", line);
        }

        char sign = end > _at ? _source[end - 1] : ' ';
        _at = end + 2;
        EndTag(sign);
    }

    // White space after a tag, according to the sign before its end.
    private void EndTag(char sign)
    {
        int start = _at;
        if (sign == '-')
        {
            SkipSpaces();
        }
        else if (sign != '+' && _at < _source.Length && _source[_at] == '\n')
        {
            _at++;
        }

        _startsLine = _at > start && _source[_at - 1] == '\n';
    }

    private void SkipSpaces()
    {
        while (_at < _source.Length && PythonString.IsSpace(_source[_at]))
        {
            _at++;
        }
    }

    // A tag that holds one word, such as {% raw %}; the index is after its end then, or unchanged.
    private bool TryWord(string word)
    {
        int before = _at;
        SkipSpaces();
        if (string.CompareOrdinal(_source, _at, word, 0, word.Length) == 0)
        {
            _at += word.Length;
            SkipSpaces();
            bool strips = _at < _source.Length && _source[_at] == '-';
            _at += strips ? 1 : 0;
            if (string.CompareOrdinal(_source, _at, "%}", 0, 2) == 0)
            {
                _at += 2;
                int end = _at;
                if (strips)
                {
                    SkipSpaces();
                }

                _startsLine = _at > end && _source[_at - 1] == '\n';
                return true;
            }
        }

        _at = before;
        return false;
    }

    private void Raw()
    {
        int line = Line(_at);
        int start = _at;
        for (int i = start; (i = _source.IndexOf("{%", i, StringComparison.Ordinal)) >= 0; i += 2)
        {
            _at = i + 2;
            char sign = _at < _source.Length && _source[_at] is '-' or '+' ? _source[_at++] : ' ';
            SkipSpaces();
            if (string.CompareOrdinal(_source, _at, "endraw", 0, 6) != 0)
            {
                continue;
            }

            _at += 6;
            SkipSpaces();
            char endSign = _at < _source.Length && _source[_at] is '-' or '+' ? _source[_at++] : ' ';
            if (string.CompareOrdinal(_source, _at, "%}", 0, 2) == 0)
            {
                AddData(Strip(_source[start..i], sign, isVariable: false));
                _at += 2;
                EndTag(endSign);
                return;
            }
        }

        throw new JinjaException("the raw block has no end.", line);
    }

    private void Inside(TokenKind begin, string beginText, TokenKind end, string endText)
    {
        int line = Line(_at);
        _tokens.Add(new Token(begin, beginText, line));
        Stack<char> brackets = [];
        while (true)
        {
            SkipSpaces();
            if (_at >= _source.Length)
            {
                throw new JinjaException($"the tag that begins with '{beginText}' has no end.", line);
            }

            char sign = _source[_at] is '-' or '+' ? _source[_at] : ' ';
            int signLength = sign == ' ' || (sign == '+' && end == TokenKind.VariableEnd) ? 0 : 1;
            if (brackets.Count == 0 && string.CompareOrdinal(_source, _at + signLength, endText, 0, 2) == 0)
            {
                Add(end, endText);
                _at += signLength + 2;
                if (end == TokenKind.BlockEnd)
                {
                    EndTag(sign);
                }
                else if (sign == '-')
                {
                    SkipSpaces();
                    _startsLine = _source[_at - 1] == '\n';
                }
                else
                {
                    _startsLine = false;
                }

                return;
            }

            Next(brackets);
        }
    }

    private void Next(Stack<char> brackets)
    {
        char c = _source[_at];
        if (c is '\'' or '"')
        {
            (string value, int end) = StringLiteral.Read(_source, _at, Line(_at));
            Add(TokenKind.String, value);
            _at = end;
        }
        else if (char.IsAsciiDigit(c))
        {
            Number();
        }
        else if (c == '_' || char.IsLetter(c))
        {
            int end = _at;
            while (end < _source.Length && (_source[end] == '_' || char.IsLetterOrDigit(_source[end])))
            {
                end++;
            }

            Add(TokenKind.Name, _source[_at..end]);
            _at = end;
        }
        else
        {
            string found = Array.Find(s_operators, text => string.CompareOrdinal(_source, _at, text, 0, text.Length) == 0)
                ?? throw new JinjaException($"unexpected character '{c}'.", Line(_at));
            Balance(brackets, found[0]);
            Add(TokenKind.Operator, found);
            _at += found.Length;
        }
    }

    private void Balance(Stack<char> brackets, char c)
    {
        if (c is '(' or '[' or '{')
        {
            brackets.Push(c);
        }
        else if (c is ')' or ']' or '}')
        {
            char expected = c switch { ')' => '(', ']' => '[', _ => '{' };
            if (!brackets.TryPop(out char open) || open != expected)
            {
                throw new JinjaException($"unexpected '{c}'.", Line(_at));
            }
        }
    }

    private void Number()
    {
        int radix = _at + 1 < _source.Length && _source[_at] == '0' ? char.ToLowerInvariant(_source[_at + 1]) switch { 'x' => 16, 'o' => 8, 'b' => 2, _ => 0 } : 0;
        if (radix > 0)
        {
            int start = _at + 2;
            int stop = start;
            while (stop < _source.Length && (char.IsAsciiHexDigit(_source[stop]) || _source[stop] == '_'))
            {
                stop++;
            }

            try
            {
                string digits = _source[start..stop].Replace("_", "", StringComparison.Ordinal);
                Add(TokenKind.Integer, Convert.ToInt64(digits, radix).ToString(CultureInfo.InvariantCulture));
                _at = stop;
                return;
            }
            catch (Exception exception) when (exception is FormatException or OverflowException or ArgumentException)
            {
                throw new JinjaException($"'{_source[_at..stop]}' is not a 64-bit integer.", Line(_at));
            }
        }

        int end = Digits(_at);
        bool isFloat = false;

        // "1.real" is an attribute of 1, and a digit after a point an index: messages.0.1.
        bool isIndex = _at > 0 && _source[_at - 1] == '.';
        if (!isIndex && end + 1 < _source.Length && _source[end] == '.' && char.IsAsciiDigit(_source[end + 1]))
        {
            isFloat = true;
            end = Digits(end + 1);
        }

        if (!isIndex && end + 1 < _source.Length && _source[end] is 'e' or 'E')
        {
            int exponent = end + (_source[end + 1] is '+' or '-' ? 2 : 1);
            if (exponent < _source.Length && char.IsAsciiDigit(_source[exponent]))
            {
                isFloat = true;
                end = Digits(exponent);
            }
        }

        Add(isFloat ? TokenKind.Float : TokenKind.Integer, _source[_at..end].Replace("_", "", StringComparison.Ordinal));
        _at = end;
    }

    private int Digits(int from)
    {
        while (from < _source.Length
            && (char.IsAsciiDigit(_source[from]) || (_source[from] == '_' && from + 1 < _source.Length && char.IsAsciiDigit(_source[from + 1]))))
        {
            from++;
        }

        return from;
    }

    private void Add(TokenKind kind, string text) => _tokens.Add(new Token(kind, text, Line(_at)));

    private int Line(int at)
    {
        _line += _source.AsSpan(_lineAt, at - _lineAt).Count('\n');
        _lineAt = at;
        return _line;
    }
}
