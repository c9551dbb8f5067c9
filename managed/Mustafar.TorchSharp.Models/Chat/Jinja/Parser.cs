namespace Mustafar.Models.Chat.Jinja;

/// <summary>Reads statements from tokens.</summary>
internal sealed class Parser
{
    private static readonly HashSet<string> s_reserved = ["true", "false", "none", "True", "False", "None"];

    private readonly TokenReader _tokens;
    private readonly ExpressionParser _expressions;
    private int _loops;

    private Parser(List<Token> tokens)
    {
        _tokens = new TokenReader(tokens);
        _expressions = new ExpressionParser(_tokens);
    }

    /// <summary>Reads a template.</summary>
    /// <exception cref="JinjaException">It is not valid, or has a tag that is not supported.</exception>
    public static Body Parse(string source)
    {
        Parser parser = new(Lexer.Split(source));
        Body body = parser.Body();
        return parser._tokens.Current.Kind == TokenKind.End
            ? body
            : throw parser._tokens.Error($"unexpected tag {parser._tokens.Current}.");
    }

    // Up to a tag with one of the given names, where the reader then is, or to the template's end.
    private Body Body(params ReadOnlySpan<string> ends)
    {
        ExpressionParser.RequireStack(_tokens);
        List<Statement> statements = [];
        while (_tokens.Current.Kind != TokenKind.End)
        {
            Token token = _tokens.Take();
            switch (token.Kind)
            {
                case TokenKind.Data:
                    statements.Add(new Text(token.Text));
                    break;
                case TokenKind.VariableBegin:
                    statements.Add(new Print(_expressions.Tuple()) { Line = token.Line });
                    _tokens.Expect(TokenKind.VariableEnd);
                    break;
                default:
                    if (ends.Contains(_tokens.Current.Text))
                    {
                        return new Body(statements);
                    }

                    statements.Add(Tag(_tokens.ExpectName(), token.Line));
                    break;
            }
        }

        return ends.IsEmpty ? new Body(statements) : throw _tokens.Error($"expected '{ends[^1]}', but the template ends.");
    }

    private Statement Tag(string name, int line)
    {
        switch (name)
        {
            case "if":
                return If(line);
            case "for":
                return For(line);
            case "set":
                return Set(line);
            case "macro":
                return MacroTag(line);
            case "call":
                return CallTag(line);
            case "filter":
                Filter filter = _expressions.FilterChain(null);
                return new SetBlock(null, filter, BlockOf("endfilter")) { Line = line };
            case "with":
                return With(line);
            case "block":
                _ = AssignableName();
                return new Block(BlockOf("endblock")) { Line = line };
            case "generation":
                // Marks the model's own text, for training; transformers renders its body.
                return new Block(BlockOf("endgeneration")) { Line = line };
            case "break" or "continue" when _loops > 0:
                _tokens.Expect(TokenKind.BlockEnd);
                return new Jump(name == "break" ? Flow.Break : Flow.Continue);
            default:
                throw _tokens.Error($"the tag '{name}' is not supported here.");
        }
    }

    private Body BlockOf(string end)
    {
        _tokens.Expect(TokenKind.BlockEnd);
        Body body = Body(end);
        _tokens.Take();
        _tokens.Expect(TokenKind.BlockEnd);
        return body;
    }

    private If If(int line)
    {
        List<(Expression Test, Body Body)> branches = [];
        Body? otherwise = null;
        string tag;
        do
        {
            Expression test = _expressions.Tuple();
            _tokens.Expect(TokenKind.BlockEnd);
            branches.Add((test, Body("elif", "else", "endif")));
            tag = _tokens.ExpectName();
        }
        while (tag == "elif");
        if (tag == "else")
        {
            otherwise = BlockOf("endif");
        }
        else
        {
            _tokens.Expect(TokenKind.BlockEnd);
        }

        return new If(branches, otherwise) { Line = line };
    }

    private For For(int line)
    {
        Expression target = Target();
        _tokens.ExpectName("in");
        Expression items = _expressions.Tuple(allowsConditional: false);
        Expression? test = _tokens.TrySkip("if") ? _expressions.Expression() : null;
        bool isRecursive = _tokens.TrySkip("recursive");
        _tokens.Expect(TokenKind.BlockEnd);
        _loops++;
        Body body = Body("else", "endfor");
        _loops--;
        Body? otherwise = null;
        if (_tokens.ExpectName() == "else")
        {
            otherwise = BlockOf("endfor");
        }
        else
        {
            _tokens.Expect(TokenKind.BlockEnd);
        }

        return new For(target, items, test, isRecursive, body, otherwise) { Line = line };
    }

    private Statement Set(int line)
    {
        Expression target = Target(allowsAttribute: true);
        if (_tokens.TrySkip("="))
        {
            Expression value = _expressions.Tuple();
            _tokens.Expect(TokenKind.BlockEnd);
            return new Set(target, value) { Line = line };
        }

        Filter? filter = _tokens.Current.Text == "|" ? _expressions.FilterChain(null) : null;
        return new SetBlock(target, filter, BlockOf("endset")) { Line = line };
    }

    private MacroDefinition MacroTag(int line)
    {
        string name = AssignableName();
        List<(string, Expression?)> parameters = Parameters();
        return new MacroDefinition(name, parameters, MacroBody("endmacro")) { Line = line };
    }

    private CallBlock CallTag(int line)
    {
        List<(string, Expression?)> parameters = _tokens.Current.Text == "(" ? Parameters() : [];
        Expression call = _expressions.Expression();
        return new CallBlock(call as Call ?? throw _tokens.Error("expected a call."), parameters, MacroBody("endcall")) { Line = line };
    }

    // The body of a macro cannot leave a loop around it.
    private Body MacroBody(string end)
    {
        int loops = _loops;
        _loops = 0;
        Body body = BlockOf(end);
        _loops = loops;
        return body;
    }

    private List<(string Name, Expression? Default)> Parameters()
    {
        List<(string, Expression?)> parameters = [];
        _tokens.Expect("(");
        while (!_tokens.TrySkip(")"))
        {
            string name = AssignableName();
            parameters.Add((name, _tokens.TrySkip("=") ? _expressions.Expression() : null));
            if (_tokens.Current.Text != ")")
            {
                _tokens.Expect(",");
            }
        }

        return parameters;
    }

    private Block With(int line)
    {
        List<Statement> statements = [];
        while (_tokens.Current.Kind != TokenKind.BlockEnd)
        {
            Expression target = Target();
            _tokens.Expect("=");
            statements.Add(new Set(target, _expressions.Expression()) { Line = line });
            if (_tokens.Current.Kind != TokenKind.BlockEnd)
            {
                _tokens.Expect(",");
            }
        }

        statements.Add(BlockOf("endwith"));
        return new Block(new Body(statements)) { Line = line };
    }

    private string AssignableName()
    {
        string name = _tokens.ExpectName();
        return s_reserved.Contains(name) ? throw _tokens.Error($"can't assign to '{name}'.") : name;
    }

    private Expression Target(bool allowsAttribute = false)
    {
        List<Expression> names = [];
        bool isTuple = false;
        do
        {
            if (isTuple && _tokens.Current.Text is "=" or "in")
            {
                break;
            }

            bool isNested = _tokens.TrySkip("(");
            string name = isNested ? "" : AssignableName();
            names.Add(isNested ? Target()
                : allowsAttribute && _tokens.TrySkip(".") ? new NamespaceAttribute(name, _tokens.ExpectName())
                : new Name(name));
            if (isNested)
            {
                _tokens.Expect(")");
            }

            isTuple |= _tokens.Current.Text == ",";
        }
        while (_tokens.TrySkip(","));
        return isTuple ? new SequenceLiteral(names, isTuple: true) : names[0];
    }
}
